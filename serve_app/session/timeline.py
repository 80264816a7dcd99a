"""From the engine's clock to the client's: the engine hears silence that the client never sent."""

from collections import deque

from serve_app.speech import SAMPLE_RATE_HZ

KEPT_INSERTIONS = 64
"""Insertions looked at one by one. Results lag the audio by seconds, so older ones only count as a sum."""


class Timeline:
    """Maps seconds of the stream that the engine hears to seconds of the audio that the client sent."""

    def __init__(self) -> None:
        self._insertions: deque[tuple[int, int]] = deque()
        self._older_samples = 0

    def insert(self, at_sample: int, samples: int) -> None:
        """Record `samples` of silence put in at `at_sample` of the engine's stream; calls come in order."""
        if samples:
            self._insertions.append((at_sample, samples))
        if len(self._insertions) > KEPT_INSERTIONS:
            self._older_samples += self._insertions.popleft()[1]

    def __call__(self, engine_seconds: float) -> float:
        """The client's time; a moment inside inserted silence is the moment where it was put in."""
        engine_samples = engine_seconds * SAMPLE_RATE_HZ
        inserted = float(self._older_samples)
        for at_sample, samples in self._insertions:
            inserted += min(max(engine_samples - at_sample, 0.0), samples)
        return max(0.0, (engine_samples - inserted) / SAMPLE_RATE_HZ)
