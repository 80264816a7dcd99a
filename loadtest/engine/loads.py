"""Real-time streams before one engine, in simulated time: the batcher's own rule decides which frames share a step.

Arrivals are the same for whoever is measured; the clock advances by what each step really took.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.engine.queues import FrameQueues
from serve_app.engine.step_times import StepTimes
from serve_app.settings import EngineSettings
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS

ACTIVE_SHARE = 0.2
"""Share of the slots that get audio where most of them wait."""

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


@dataclass
class Timeline:
    """What one engine makes of a load."""

    load: Load
    width: int
    """Slots of the engine."""
    round_frames: int
    """Frames of each stream in one `run`."""
    waits_and_steps_s: list[float] = field(default_factory=list)
    """From each frame's arrival to its result."""
    _now: float = 0.0
    _frames_done: int = 0

    def __post_init__(self) -> None:
        self._settings = EngineSettings(queue_frames=self.round_frames)
        self._queues = FrameQueues(self.width, self.round_frames)
        self._times = StepTimes()
        self._runs = np.zeros(self.width, bool)
        self._runs[self.load.slots] = True
        self._taken = np.zeros(self.width, np.int64)
        for slot in self.load.slots:
            self._queues.clear(int(slot), 0.0)

    def run(self, step: Step) -> None:
        """`round_frames` more frames of every stream."""
        arrivals = self._arrivals()
        self._frames_done += self.round_frames
        coming = 0
        nothing = np.zeros((1, FRAME_SAMPLES), np.float32)  # what is in the frames is the caller's business
        while True:
            while coming < len(arrivals) and arrivals[coming][0] <= self._now:
                at, slot = arrivals[coming]
                self._queues.push(slot, nothing, at)
                coming += 1
            live, backlog = self._queues.ready(self._runs, self._now)
            wait = self._wait_s(live, backlog)
            if wait is None or wait > 0:
                moments = [] if wait is None else [self._now + wait]
                moments += [at for at, _ in arrivals[coming : coming + 1]]
                if not moments:
                    return
                self._now = max(min(moments), np.nextafter(self._now, np.inf))
                continue
            self._step(np.sort(np.concatenate([live, backlog])), step)

    def _arrivals(self) -> list[tuple[float, int]]:
        """When the next frames come, and for which slots, in order."""
        frames = np.arange(self._frames_done, self._frames_done + self.round_frames)
        times = (frames[:, None] * FRAME_SECONDS + self.load.phases_s).ravel()
        slots = np.tile(self.load.slots, len(frames))
        return [(float(times[i]), int(slots[i])) for i in np.argsort(times, kind="stable")]

    def _wait_s(self, live: NDArray[np.int64], backlog: NDArray[np.int64]) -> float | None:
        """The batcher's rule: 0 or less is now, None is until something comes."""
        if len(backlog):
            return 0.0
        if not len(live):
            return None
        longest = self._settings.max_wait_seconds * self._times.busy_share(self._now)
        return self._queues.wait_seconds(self._runs, live, self._now, longest)

    def _step(self, slots: NDArray[np.int64], step: Step) -> None:
        arrived = np.array([self._queues.oldest_arrival(slots[i : i + 1]) for i in range(len(slots))])
        self._queues.take(slots)
        took = step(slots, self._taken[slots])
        self._taken[slots] += 1
        self._now += took
        self._times.add(self._now, took, len(slots))
        self.waits_and_steps_s += (self._now - arrived).tolist()
