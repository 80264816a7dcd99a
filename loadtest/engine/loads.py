"""Real-time streams before one engine, in simulated time: the batcher's own rule decides which frames share a step.

Arrivals are the same for whoever is measured; the clock advances by what each step really took.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.engine.queues import FrameQueues
from serve_app.engine.step_times import StepTimes
from serve_app.settings import EngineSettings
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS

ACTIVE_SHARE = 0.2
"""Share of the slots that get audio where most of them wait."""

QUEUE_FRAMES = 4
"""Frames of a stream that wait at most; where the engine falls behind, the others come late."""

DEFAULT_MAX_WAIT_S = EngineSettings().max_wait_seconds

Step = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
"""Steps these slots, int64 [n], with these frames of their streams, int64 [n]; returns the seconds that it took."""


@dataclass(frozen=True)
class Load:
    """Which slots get a frame every 80 ms, and when."""

    name: str
    slots: NDArray[np.int64]
    """Slots that get audio, int64 [n], ascending."""
    phases_s: NDArray[np.float64]
    """When in each 80 ms the frame of each of them comes, float64 [n]."""


def loads(slots: int) -> list[Load]:
    """All frames at once; at random phases, as people connect; all at once, but only for a fifth of the slots."""
    draw = random.Random(slots)
    every = np.arange(slots)
    phases = np.array([draw.uniform(0, FRAME_SECONDS) for _ in every])
    few = np.array(sorted(draw.sample(range(slots), max(1, round(ACTIVE_SHARE * slots)))))
    return [
        Load("aligned", every, np.zeros(slots)),
        Load("random", every, phases),
        Load("sparse", few, np.zeros(len(few))),
    ]


class Timeline:
    """What one engine makes of a load."""

    def __init__(self, load: Load, width: int, max_wait_s: float = DEFAULT_MAX_WAIT_S) -> None:
        """`width` is the number of slots that the engine has, `max_wait_s` its setting `max_wait_seconds`."""
        self.waits_and_steps_s: list[float] = []
        """From each frame's arrival to its result."""
        self._slots, self._phases_s = load.slots, load.phases_s
        self._now = 0.0
        self._max_wait_s = max_wait_s
        self._queues = FrameQueues(width, QUEUE_FRAMES)
        self._times = StepTimes()
        self._runs = np.zeros(width, bool)
        self._runs[load.slots] = True
        self._arrived, self._taken = np.zeros(width, np.int64), np.zeros(width, np.int64)
        for slot in load.slots:
            self._queues.clear(int(slot), 0.0)

    def run(self, frames: int, step: Step) -> None:
        """Go on until every stream has had so many frames since the beginning; some may have had one more or two."""
        while self._taken[self._slots].min() < frames:
            self._arrive()
            live, backlog = self._queues.ready(self._runs, self._now)
            next_at = float(self._next_arrivals().min())
            if not len(live) and not len(backlog):
                self._now = next_at
                continue
            wait = 0.0
            if not len(backlog):
                longest = self._max_wait_s * self._times.busy_share(self._now)
                wait = self._queues.wait_seconds(self._runs, live, self._now, longest)
            if wait > 0:
                self._now = max(min(self._now + wait, next_at), float(np.nextafter(self._now, np.inf)))
            else:
                self._step(np.sort(np.concatenate([live, backlog])), step)

    def _next_arrivals(self) -> NDArray[np.float64]:
        """When the next frame of each stream comes; streams whose queue is full wait for room."""
        times = self._phases_s + self._arrived[self._slots] * FRAME_SECONDS
        full = self._arrived[self._slots] - self._taken[self._slots] >= QUEUE_FRAMES
        return np.where(full, np.inf, times)

    def _arrive(self) -> None:
        """Queue every frame that has come by now."""
        nothing = np.zeros((1, FRAME_SAMPLES), np.float32)  # what is in the frames is the caller's business
        while len(due := np.flatnonzero((times := self._next_arrivals()) <= self._now)):
            for place in due:
                slot = int(self._slots[place])
                self._queues.push(slot, nothing, float(times[place]))
                self._arrived[slot] += 1

    def _step(self, slots: NDArray[np.int64], step: Step) -> None:
        arrived = self._phase_of(slots) + self._taken[slots] * FRAME_SECONDS
        self._queues.take(slots)
        took = step(slots, self._taken[slots])
        self._taken[slots] += 1
        self._now += took
        self._times.add(self._now, took, len(slots))
        self.waits_and_steps_s += (self._now - arrived).tolist()

    def _phase_of(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._phases_s[np.searchsorted(self._slots, slots)]
