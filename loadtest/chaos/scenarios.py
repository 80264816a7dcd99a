"""The scenarios: which harm, done to which service."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.chaos import crowds, kills, losses, rollouts
from loadtest.chaos.attack import BEFORE_HARM_SECONDS, Attack


@dataclass(frozen=True)
class Scenario:
    """A kind of harm, and the service it is done to."""

    harm: Callable[[Attack], Awaitable[None]]
    """Does the harm, once or several times; runs beside the sessions."""
    room: float = 1.0
    """Slots per engine for each session: 1 where one engine must carry all of them."""
    spare_slots: int = 0
    """Slots per engine beyond that, for the clients that do the harm."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the application that differ from the defaults."""
    least_seconds: float = 0.0
    """Audio that each session needs to see all of the harm."""
    nodes: int = 0
    """Nodes that the service is spread over; 0 for the launcher's one."""


SCENARIOS: Mapping[str, Scenario] = {
    "engine-kill": Scenario(kills.kill_an_engine),
    "all-engines-kill": Scenario(kills.kill_all_engines, room=0.5),
    "ingress-kill": Scenario(kills.kill_the_ingress),
    "vault-kill": Scenario(kills.kill_the_vault),
    "node-kill": Scenario(
        losses.lose_nodes,
        args={"ingress": {"replicas": losses.INGRESSES}},
        least_seconds=losses.LEAST_SECONDS,
        nodes=losses.NODES,
    ),
    "redeploy": Scenario(rollouts.redeploy, least_seconds=rollouts.INGRESS_DRAIN_SECONDS + 4 * BEFORE_HARM_SECONDS),
    "roll-engines": Scenario(rollouts.roll_engines),
    "drain": Scenario(rollouts.drain, args={"engine": {"placement": "spread"}}),
    "scale-ingress": Scenario(
        rollouts.scale_ingress,
        spare_slots=rollouts.CROWD,
        args={"ingress": {"autoscaling": rollouts.INGRESS_SCALING}},
    ),
    "network-cut": Scenario(kills.cut_the_network),
    "slow-client": Scenario(
        crowds.slow_clients,
        spare_slots=2 * crowds.SLOW_CLIENTS + 1,
        args={"ingress": {"slow_client_seconds": 3.0}},
        least_seconds=crowds.BUFFERS_FULL_SECONDS,
    ),
    "overload": Scenario(crowds.overload, room=0.5),
    "storm": Scenario(crowds.storm, room=0.5, spare_slots=crowds.STORM_AT_ONCE),
}
"""By the names of the command line."""
