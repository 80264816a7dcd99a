"""From sessions to numbers: what a load test reports for each step, a time with one number of users."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from serve_app.measuring.speaking import Outcome

LATE_S = 0.08
"""A generator that is later than a frame for one chunk in a hundred is itself the bottleneck."""

PERCENTILES = (50, 95, 99)

_NUMBERS = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Step:
    """A time during which as many users were wanted."""

    users: int
    begins_at: float
    """Time of day, as all times here."""
    ends_at: float


@dataclass(frozen=True)
class Moment:
    """What was seen once a second."""

    at: float
    users: int
    """There were."""
    wanted: int
    stage: int
    """Of the shape; without one, how often the number of users was changed."""
    processes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of the service's processes here and of the generator's: `cpu_cores` and `memory_bytes`, by what they do."""
    service: dict[str, float] = field(default_factory=dict)
    """The service's own metrics."""


def steps_of(moments: Sequence[Moment]) -> list[Step]:
    """The steps that the moments make up: one per stage, in order; times without users are none."""
    groups = [list(group) for _, group in groupby(moments, key=lambda moment: moment.stage)]
    return [
        # The first moment of a stage may still have the users of the one before.
        Step(group[-1].wanted, group[0].at, following[0].at if following else group[-1].at)
        for group, following in zip_longest(groups, groups[1:])
        if group[-1].wanted
    ]


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """Median, 95th and 99th percentile in seconds; None without values."""
    found = np.percentile(list(values) or [np.nan], PERCENTILES)
    return {f"p{percent}": _number(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def measure(step: Step, outcomes: Sequence[Outcome], is_first: bool, is_last: bool, budget_s: float) -> dict[str, Any]:
    """The numbers of a step. A word belongs to the step in which it came, a session to the one in which it ended.

    What came before the first step and after the last one counts there. `budget_s` is for the 99th percentile of the
    word delay.
    """

    def inside(at: float) -> bool:
        return (is_first or at >= step.begins_at) and (is_last or at < step.ends_at)

    ended = [outcome for outcome in outcomes if inside(outcome.ended_at)]
    delays = percentiles(delay for outcome in outcomes for at, delay in outcome.word_delays if inside(at))
    words = sum(outcome.words for outcome in ended)
    failures = sum(outcome.failure is not None for outcome in ended)
    late_p99 = percentiles(late for outcome in ended for late in outcome.late_s)["p99"]
    p99 = delays["p99"]

    def spread(name: str) -> dict[str, float | None]:
        values = (getattr(outcome, name) for outcome in ended)
        return percentiles(value for value in values if value is not None)

    return {
        "users": step.users,
        "seconds": round(step.ends_at - step.begins_at, 1),
        "sessions": len(ended),
        "failures": failures,
        "wer": round(sum(outcome.word_errors for outcome in ended) / words, 5) if words else None,
        "word_delay_s": delays,
        "first_token_s": spread("first_token_s"),
        "connect_s": spread("connect_s"),
        "ready_s": spread("ready_s"),
        "flush_s": spread("flush_s"),
        "end_s": spread("end_s"),
        "generator_late_p99_s": late_p99,
        "generator_is_bottleneck": late_p99 is not None and late_p99 > LATE_S,
        "within_budget": p99 is not None and p99 <= budget_s and not failures,
    }


def measure_all(moments: Sequence[Moment], outcomes: Sequence[Outcome], budget_s: float) -> list[dict[str, Any]]:
    """The numbers of all steps, in order."""
    steps = steps_of(moments)
    last = len(steps) - 1
    return [measure(step, outcomes, number == 0, number == last, budget_s) for number, step in enumerate(steps)]


def largest_within_budget(numbers: Sequence[dict[str, Any]]) -> int | None:
    """The most users up to which every step was within the budget; None if not even the fewest were."""
    largest = None
    for users in sorted({step["users"] for step in numbers}):
        if not all(step["within_budget"] for step in numbers if step["users"] == users):
            break
        largest = users
    return largest


def failures(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How often sessions failed, by reason, the most frequent first."""
    return dict(Counter(kind_of_failure(outcome.failure) for outcome in outcomes if outcome.failure).most_common())


def kind_of_failure(reason: str) -> str:
    """The reason without its numbers, which would make each one another."""
    return _NUMBERS.sub("…", reason)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
