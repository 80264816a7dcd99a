"""How long steps took lately, and what that says about room for more streams."""

from collections import deque

import numpy as np

from serve_app.speech import FRAME_SECONDS

WINDOW_SECONDS = 10.0
MAX_STEPS = 1_000
MIN_STEPS = 25
"""Steps needed in the window before the headroom is believed: the first ones after a start are slow."""


class StepTimes:
    """Durations and widths of the steps of the last ten seconds (at most the last thousand). Not thread-safe."""

    def __init__(self) -> None:
        self.steps_total = 0
        self.frames_total = 0
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=MAX_STEPS)
        self._busy_share = 0.0
        self._busy_at = 0.0
        self._cached: tuple[int, float, tuple[float, float]] = (-1, 0.0, (0.0, 0.0))

    def add(self, end: float, duration: float, rows: int) -> None:
        """Record a step that ended at `end` (monotonic seconds), took `duration` seconds and had `rows` rows."""
        self.steps_total += 1
        self.frames_total += rows
        self._steps.append((end, duration, rows))
        # Exponential average over about a second: the share of time spent in steps.
        gap = max(end - self._busy_at, duration, 1e-6)
        weight = 1.0 - np.exp(-gap)
        self._busy_share += weight * (duration / gap - self._busy_share)
        self._busy_at = end

    def busy_share(self, now: float) -> float:
        """Share of the last second or so that was spent in steps, 0 to 1."""
        return float(self._busy_share * np.exp(-(now - self._busy_at)))

    def percentiles(self, now: float) -> tuple[float, float]:
        """Median and 95th percentile of the step time in seconds; (0, 0) without steps."""
        self._forget(now)
        total, at, cached = self._cached
        if total == self.steps_total and now - at < 1.0:
            return cached
        durations = [duration for _, duration, _ in self._steps]
        p50, p95 = np.percentile(durations, [50, 95]) if durations else (0.0, 0.0)
        self._cached = self.steps_total, now, (float(p50), float(p95))
        return float(p50), float(p95)

    def headroom(self, now: float) -> float:
        """1 - p95 of the step time / 80 ms; 1 while too few steps are known, unless those fill half the window."""
        self._forget(now)
        if len(self._steps) < MIN_STEPS and sum(duration for _, duration, _ in self._steps) < WINDOW_SECONDS / 2:
            return 1.0
        return 1.0 - self.percentiles(now)[1] / FRAME_SECONDS

    def batch_size_mean(self, now: float) -> float:
        """Mean number of rows per step; 0 without steps."""
        self._forget(now)
        return float(np.mean([rows for _, _, rows in self._steps])) if self._steps else 0.0

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] < now - WINDOW_SECONDS:
            self._steps.popleft()
