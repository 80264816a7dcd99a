"""Who decides how many engines there are: ours, Serve's default, or nobody."""

import math
from typing import Any, Protocol

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.autoscaling import Rules, Scaler, Situation


class Policy(Protocol):
    """Decides once per step."""

    look_back_steps: int
    """Over how many steps the mean of the sessions is taken that it sees."""

    def decide(self, now_s: float, sessions: float, running: int, target: int, lost_slots: float) -> int:
        """The number of engines there should be."""


class Ours:
    """`serve_app.autoscaling`."""

    look_back_steps = 1

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._scaler = Scaler(rules)

    def decide(self, now_s: float, sessions: float, running: int, target: int, lost_slots: float) -> int:
        """See `Policy`."""
        return self._scaler.decide(Situation(now_s, sessions, target, self._rules.slots, lost_slots))


class ServesDefault:
    """Serve's policy by ongoing requests, with Serve's delays, as its controller applies them."""

    look_back_steps = 3

    def __init__(self, rules: Rules, target_share: float) -> None:
        """`target_share` of an engine's slots are the ongoing requests that it aims at."""
        self._config = AutoscalingConfig(
            min_replicas=max(1, rules.min_replicas),
            max_replicas=rules.max_replicas,
            target_ongoing_requests=rules.slots * target_share,
        )
        self._state: dict[str, Any] = {}

    def decide(self, now_s: float, sessions: float, running: int, target: int, lost_slots: float) -> int:
        """See `Policy`."""
        context = AutoscalingContext(
            deployment_id=DeploymentID(name="engine"),
            deployment_name="engine",
            app_name="stt",
            current_num_replicas=running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=sessions,
            total_queued_requests=0.0,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self._config,
        )
        desired, _ = replica_queue_length_autoscaling_policy(context)
        desired = _apply_scaling_factors(desired, running, self._config)
        decided, self._state = _apply_delay_logic(max(0, desired), target, self._config, self._state, _now=now_s)
        return min(max(decided, self._config.min_replicas), self._config.max_replicas)


class Fixed:
    """As many engines all week as the peak needs at the target share."""

    look_back_steps = 1

    def __init__(self, rules: Rules, peak_sessions: int) -> None:
        self._replicas = math.ceil(peak_sessions / (rules.slots * rules.target_share))

    def decide(self, now_s: float, sessions: float, running: int, target: int, lost_slots: float) -> int:
        """See `Policy`."""
        return self._replicas
