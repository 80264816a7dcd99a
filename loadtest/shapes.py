"""How many users there are when: a run is a row of stages, and every stage is a step of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

ShapeName: TypeAlias = Literal["steps", "ramp", "burst", "churn", "soak"]
SHAPES: tuple[ShapeName, ...] = get_args(ShapeName)

RAMP_STAGES = 12
BURST_CALM_SHARE = 0.25
"""Users between two bursts, of those in a burst."""
BURST_STAGE_S = 20.0
SOAK_STAGES = 12

CHURN_LENGTH = "1-5"
"""Seconds of a session under churn, where nothing else was asked for."""


class InvalidShape(Exception):
    """The shape cannot be made of what was asked for."""


@dataclass(frozen=True)
class Stage:
    """A number of users for a time."""

    users: int
    seconds: float
    spawn_rate: float
    """Users that come or go per second, until the number is reached."""


def parse_steps(text: str) -> list[int]:
    """Read `8,16,32`. Raises `InvalidShape`."""
    try:
        steps = [int(step) for step in text.split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1:
        raise InvalidShape(f"steps: expected numbers of users with commas, as in 8,16,32, got {text!r}")
    return steps


def stages(
    shape: ShapeName, users: int, spawn_rate: float, seconds: float, steps: Sequence[int], step_seconds: float
) -> list[Stage]:
    """The stages of a shape: `steps` go by `steps` and `step_seconds`, all others by `users` and `seconds`.

    Raises `InvalidShape` where it cannot be.
    """
    if shape == "steps":
        return [Stage(count, step_seconds, spawn_rate) for count in steps]
    if users < 1 or not seconds > 0:
        raise InvalidShape(f"{shape}: expected a number of users (-u) and a time (-t), got {users} and {seconds:g} s")
    match shape:
        case "ramp":
            number = min(users, RAMP_STAGES)
            counts = [max(1, round(users * (index + 1) / number)) for index in range(number)]
            rate = max(1.0, users / seconds)
            return [Stage(count, seconds / number, rate) for count in counts]
        case "burst":
            number = max(2, round(seconds / BURST_STAGE_S))
            counts = [users if index % 2 else max(1, round(users * BURST_CALM_SHARE)) for index in range(number)]
            return [Stage(count, seconds / number, float(users)) for count in counts]  # all of them within a second
        case "churn" | "soak":
            return [Stage(users, seconds / SOAK_STAGES, spawn_rate)] * SOAK_STAGES
