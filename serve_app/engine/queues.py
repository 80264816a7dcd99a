"""Ready frames of all slots, kept in arrays so that choosing and taking a batch costs no Python per row.

Not thread-safe: the batcher holds its lock around every call.
"""

import numpy as np
from numpy.typing import NDArray

from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS

CREDIT_FRAMES = 25.0
"""Frames a stream may run ahead of the clock (2 s) before what it sends counts as backlog."""


class FrameQueues:
    """One bounded queue of frames per slot, with the arrival time of each frame.

    A stream earns one frame of *credit* every 80 ms, up to `CREDIT_FRAMES`, and pays one for every frame taken. Frames
    it has credit for are *live*, whatever else is waiting; frames beyond that are *backlog*: an upload, or a client
    that sends faster than real time.
    """

    def __init__(self, slots: int, depth: int) -> None:
        self.depth = depth
        self._audio = np.zeros((slots, depth, FRAME_SAMPLES), dtype=np.float32)
        self._arrival = np.zeros((slots, depth))
        self._head = np.zeros(slots, dtype=np.int64)
        self._count = np.zeros(slots, dtype=np.int64)
        self._credit = np.zeros(slots)
        self._credit_at = np.zeros(slots)
        self._last_arrival = np.full(slots, -np.inf)
        self._last_taken = np.zeros(slots, dtype=np.int64)
        self._takes = 0

    def clear(self, slot: int, now: float) -> None:
        """Empty the slot's queue and give it full credit, for a new stream."""
        self._count[slot] = 0
        self._credit[slot] = CREDIT_FRAMES
        self._credit_at[slot] = now
        self._last_arrival[slot] = -np.inf

    def push(self, slot: int, frames: NDArray[np.float32], now: float) -> bool:
        """Append frames, float32 [n, FRAME_SAMPLES]; False, and nothing appended, if they do not fit."""
        count = self._count[slot]
        if count + len(frames) > self.depth:
            return False
        where = (self._head[slot] + count + np.arange(len(frames))) % self.depth
        self._audio[slot, where] = frames
        self._arrival[slot, where] = now
        self._count[slot] = count + len(frames)
        self._last_arrival[slot] = now
        return True

    def ready(self, eligible: NDArray[np.bool_], now: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Slots with a frame among the eligible ones: (live, backlog), the backlog least recently served first."""
        slots = np.flatnonzero(eligible & (self._count > 0))
        earned = (now - self._credit_at[slots]) / FRAME_SECONDS
        credit = np.minimum(CREDIT_FRAMES, self._credit[slots] + earned)
        self._credit[slots] = credit
        self._credit_at[slots] = now
        live = credit >= 1.0
        backlog = slots[~live]
        return slots[live], backlog[np.argsort(self._last_taken[backlog], kind="stable")]

    def arrivals(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """When the first frame of each of these slots came."""
        arrivals: NDArray[np.float64] = self._arrival[slots, self._head[slots]]
        return arrivals

    def recently_fed(self, eligible: NDArray[np.bool_], since: float) -> int:
        """How many of the eligible slots received a frame since then: those worth waiting for."""
        return int(np.count_nonzero(eligible & (self._last_arrival >= since)))

    def wait_seconds(
        self, eligible: NDArray[np.bool_], live: NDArray[np.int64], now: float, longest_wait: float
    ) -> float:
        """How long the first frames of these live slots should wait for others to share their step; 0 or less is now.

        At once when every eligible slot that is being fed has a frame, else when the oldest has waited `longest_wait`.
        """
        if len(live) >= self.recently_fed(eligible, now - 2 * FRAME_SECONDS):
            return 0.0
        return float(self.arrivals(live).min()) + longest_wait - now

    def take(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Remove and return the first frame of each of these slots: a copy, float32 [n, FRAME_SAMPLES]."""
        head = self._head[slots]
        frames: NDArray[np.float32] = self._audio[slots, head]
        self._head[slots] = (head + 1) % self.depth
        self._count[slots] -= 1
        self._credit[slots] = np.maximum(0.0, self._credit[slots] - 1.0)
        self._takes += 1
        self._last_taken[slots] = self._takes
        return frames
