"""When a client's audio arrived: what the delay of a word is measured from."""

from bisect import bisect_left
from collections import deque
from operator import itemgetter

from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ

KEPT_FRAMES = 512
"""Frames (41 s) looked back on: more than any model's delay and what may wait for its result."""


class Arrivals:
    """Remembers when each frame's worth of audio was complete."""

    def __init__(self, samples: int = 0) -> None:
        """The first `samples` came at another ingress."""
        self._unknown_samples = samples
        self._frames = samples // FRAME_SAMPLES
        self._marks: deque[tuple[int, float]] = deque(maxlen=KEPT_FRAMES)  # samples so far, and when: both rise

    def note(self, samples: int, now: float) -> None:
        """So many samples have come in all, the latest of them now."""
        if samples // FRAME_SAMPLES > self._frames:
            self._frames = samples // FRAME_SAMPLES
            self._marks.append((samples, now))

    def at(self, seconds: float) -> float | None:
        """When the frame had come that this moment of the audio is in; None where that is not known."""
        samples = round(seconds * SAMPLE_RATE_HZ)
        place = bisect_left(self._marks, samples, key=itemgetter(0))
        forgotten = place == 0 and len(self._marks) == KEPT_FRAMES
        if not self._marks or samples <= self._unknown_samples or forgotten:
            return None
        return self._marks[min(place, len(self._marks) - 1)][1]
