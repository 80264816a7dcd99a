"""The made-up week: who arrives when, and what breaks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

STEP_S = 10.0
"""Length of a step."""

DAY_STEPS = round(86_400 / STEP_S)

MEAN_SESSION_S = 300.0

STAYING = float(np.exp(-STEP_S / MEAN_SESSION_S))
"""Share of sessions that do not end in a step."""

WEEKEND_SHARE = 0.75
NIGHT_SHARE = 0.12
HUMPS = ((10.5, 2.2, 0.85), (20.0, 2.6, 1.0))
"""Hour, width in hours, height."""

BURSTS_PER_DAY = 4
BURST_SHARES = (0.03, 0.08)
BURST_S = 600.0

FLASH_DAY, FLASH_HOUR = 3, 15.0
FLASH_SHARE, FLASH_RISE_S, FLASH_S = 0.25, 180.0, 1800.0

SPOT_LOSSES_PER_DAY = 3
SPOT_SHARES = (0.01, 0.03)

OUTAGE_DAY, OUTAGE_HOUR, OUTAGE_S = 5, 20.0, 3600.0
RECOVERY_S = 900.0
"""After the outage: not counted as outside of it."""

ZONES = 3


@dataclass(frozen=True)
class Week:
    """What happens to every policy alike; arrays have one value per step."""

    arrivals: NDArray[np.float64]
    """New sessions."""

    losses: dict[int, float]
    """Spot losses: step, share of the engines."""

    outage: range
    """Steps in which the last zone is gone; empty if the time is too short for it."""

    peak_sessions: int

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.arrivals)

    @property
    def disturbed(self) -> range:
        """The outage and the time after it."""
        return range(self.outage.start, self.outage.stop + round(RECOVERY_S / STEP_S)) if self.outage else range(0)

    @cached_property
    def sessions(self) -> NDArray[np.float64]:
        """Sessions at once if nobody ever waits."""
        held = np.empty(self.steps)
        now = self.arrivals[0] * MEAN_SESSION_S / STEP_S
        for step, arriving in enumerate(self.arrivals):
            held[step] = now = now * STAYING + arriving
        return held


def make_week(peak_sessions: int, days: int, seed: int) -> Week:
    """The same week for the same seed."""
    draw = np.random.default_rng(seed)
    hours = np.arange(days * DAY_STEPS) * STEP_S / 3600
    load = _day_curve(hours)
    steps = np.arange(len(hours))
    for _ in range(BURSTS_PER_DAY * days):
        start, share = draw.integers(len(hours)), draw.uniform(*BURST_SHARES)
        load[(steps >= start) & (steps < start + BURST_S / STEP_S)] *= 1 + share
    since_s = (hours - FLASH_DAY * 24 - FLASH_HOUR) * 3600
    rising = np.clip(since_s / FLASH_RISE_S, 0, 1)
    load *= 1 + FLASH_SHARE * np.where(since_s < FLASH_S, rising, np.exp(-np.maximum(since_s - FLASH_S, 0) / FLASH_S))
    # The sessions at once follow the arrivals with the mean duration's delay.
    smooth, held = np.empty_like(load), load[0]
    for step, value in enumerate(load):
        smooth[step] = held = held * STAYING + value * (1 - STAYING)
    load *= peak_sessions / smooth.max()
    arrivals = draw.poisson(load * (1 - STAYING)).astype(np.float64)
    losses = {int(draw.integers(len(hours))): draw.uniform(*SPOT_SHARES) for _ in range(SPOT_LOSSES_PER_DAY * days)}
    start = round((OUTAGE_DAY * 24 + OUTAGE_HOUR) * 3600 / STEP_S)
    stop = start + round(OUTAGE_S / STEP_S)
    return Week(arrivals, losses, range(start, stop) if stop < len(hours) else range(0), peak_sessions)


def _day_curve(hours: NDArray[np.float64]) -> NDArray[np.float64]:
    curve = np.full_like(hours, NIGHT_SHARE)
    for hour, width, height in HUMPS:
        away = (hours % 24 - hour + 12) % 24 - 12  # the evening's hump reaches over midnight
        curve += (1 - NIGHT_SHARE) * height * np.exp(-0.5 * (away / width) ** 2)
    # The weekend begins and ends at four in the morning, when there is the least to see of it.
    day = ((hours - 4) // 24) % 7
    return curve * np.where(day >= 5, WEEKEND_SHARE, 1.0)
