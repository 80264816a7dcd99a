"""How many engines and ingress replicas there should be: the rules, and the policy that applies them for Ray Serve.

Engines follow sessions. Up at once, down only when fewer were enough for a whole window of time, so that nothing flaps.
Serve runs the policy in its controller, which knows nothing of ours: this module goes there by value and may import
nothing but the standard library.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

SMALL_FLEET = 10
"""Engines for which each session beyond needs less room: chance evens out among many sessions."""

LOOK_SECONDS = 1.0
"""Time between two looks; Serve asks ten times a second, and the engines report once."""


@dataclass(frozen=True)
class Rules:
    """What the operator wants: `engine.autoscaling` in `serve_app.settings`, which describes the fields."""

    slots: int
    min_replicas: int
    max_replicas: int
    target_share: float
    steady_share: float
    buffer_replicas: int
    low_headroom: float
    lead_seconds: float
    scaledown_window_seconds: float


@dataclass(frozen=True)
class Situation:
    """What is known at one moment."""

    now_s: float
    sessions: float
    """Sessions that have a slot or wait for one."""
    replicas: int
    """Engines that there are to be, by the last decision."""
    slots: float
    """Slots of an engine, on average."""
    lost_slots: float = 0.0
    """Free slots of engines whose headroom is used up: nobody can have them."""


def replicas_needed(rules: Rules, slots: float, sessions: float, rise: float = 0.0, lost_slots: float = 0.0) -> int:
    """Engines for so many sessions, when `rise` of them came in the last `lead_seconds`; between min and max.

    A small fleet is filled to `target_share`. Of a big one the rest is filled to `steady_share`, or less while sessions
    rise: the same rise again must find room until an engine that is started now is ready. `buffer_replicas` come on top
    while there are sessions at all. Never falls when an argument grows, except `slots`.
    """
    if sessions <= 0:
        return rules.min_replicas
    small = min(sessions, SMALL_FLEET * slots * rules.target_share)
    steady = small / rules.target_share + (sessions - small) / rules.steady_share
    rising = min(sessions + rise, sessions / rules.target_share)
    needed = math.ceil((max(steady, rising) + lost_slots) / slots) + rules.buffer_replicas
    return min(max(needed, rules.min_replicas), rules.max_replicas)


class Scaler:
    """Decides again and again. What was needed lately counts as much as what is needed now."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._needed: _Largest | None = None
        self._fewest_sessions = _Largest(rules.lead_seconds)  # of negatives

    def decide(self, situation: Situation) -> int:
        """Engines that there should be from now on; the moments of two calls must not go back."""
        rules, now_s, sessions = self._rules, situation.now_s, situation.sessions
        rise = sessions + self._fewest_sessions.add(now_s, -sessions)
        needed = replicas_needed(rules, situation.slots, sessions, rise, situation.lost_slots)
        if self._needed is None:
            # After a deploy, what runs has the benefit of the doubt.
            self._needed = _Largest(rules.scaledown_window_seconds)
            self._needed.add(now_s, min(max(situation.replicas, rules.min_replicas), rules.max_replicas))
        return int(self._needed.add(now_s, needed))


class Policy:
    """The policy as Serve (2.60) wants it: made once from `policy_kwargs`, the fields of `Rules`, then called."""

    def __init__(self, **rules: Any) -> None:
        self._rules = Rules(**rules)
        self._scaler = Scaler(self._rules)
        self._next_look_s = 0.0

    def __call__(self, context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state for Serve to keep."""
        if context.current_time < self._next_look_s:
            return context.target_num_replicas, {}
        self._next_look_s = context.current_time + LOOK_SECONDS
        reports = context.aggregated_metrics or {}
        slots = reports.get("slots", {})
        mean_slots = sum(slots.values()) / len(slots) if slots else self._rules.slots
        situation = Situation(
            now_s=context.current_time,
            # Serve's mean of the last seconds. The ingress replicas' looks at an engine take moments and round to none.
            sessions=round(context.total_num_requests),
            replicas=context.target_num_replicas,
            slots=mean_slots,
            lost_slots=lost_slots(self._rules, slots, reports.get("slots_used", {}), reports.get("headroom", {})),
        )
        return self._scaler.decide(situation), {}


def lost_slots(rules: Rules, slots: dict[Any, float], used: dict[Any, float], headroom: dict[Any, float]) -> float:
    """Free slots that nobody can have, from the engines' reports: those of engines at work with little headroom."""
    return sum(
        max(0.0, slots[replica] - used[replica])
        for replica in slots.keys() & used.keys() & headroom.keys()
        if used[replica] >= 1 and headroom[replica] < rules.low_headroom
    )


class _Largest:
    """The largest of the values of the last so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()  # falling: a value that a later one reaches is of no use

    def add(self, now_s: float, value: float) -> float:
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((now_s, value))
        while self._values[0][0] < now_s - self._seconds:
            self._values.popleft()
        return self._values[0][1]
