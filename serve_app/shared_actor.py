"""An actor that all processes of the service share, on Ray: it outlives replicas, deploys, and the application.

It is found by name, made when somebody needs it, made again, empty, when its process or its node has died, and ends by
itself when nobody has used it for a while.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "stt"
"""Ray namespace of these actors."""

TIMEOUT_SECONDS = 2.0
"""How long one may take to answer."""

IDLE_SECONDS = 600.0
"""An unused one ends after so long: its application is gone."""


class ActorUnavailable(Exception):
    """The actor did not answer in time, or is gone; what it held may be lost."""


class SharedActor:
    """Reaches an actor by its name, from any process of the cluster."""

    def __init__(self, kind: type, name: str, *arguments: object, node: Callable[[], str | None] | None = None) -> None:
        """`kind` is the actor's class; the arguments count while it is made, and no more until it ends.

        `node()` is the id of the node on which to make it, None for any; it may block, and raise ActorUnavailable. Left
        out, it is one of the `quiet_nodes`.
        """
        self._kind = kind
        self._name = name
        self._arguments = arguments
        self._node = node or _quiet_node
        self._actor: Any = None

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method and return what it answers. Raises ActorUnavailable."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                return await getattr(self._actor, method).remote(*arguments)
        except TimeoutError:
            raise ActorUnavailable(f"{self._name} did not answer within {TIMEOUT_SECONDS:g} s") from None
        except (RayError, ValueError) as error:
            self._actor = None  # it may have ended for good: the next call makes another one
            raise ActorUnavailable(f"{self._name} is gone: {error!r}") from error

    def _find(self) -> Any:
        with contextlib.suppress(ValueError):  # there is none
            return ray.get_actor(self._name, NAMESPACE)
        node = self._node()
        return (
            ray.remote(self._kind)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_concurrency=64,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False) if node else "DEFAULT",
            )
            .remote(*self._arguments)
        )


def quiet_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of those of `ray.nodes()` on which shared actors may be: without GPUs, if there are any without.

    Ray's autoscalers (2.60) never stop a machine with an actor on it, even if that reserves nothing and sleeps.
    """
    alive = [node for node in nodes if node["Alive"]]
    plain = [node for node in alive if not node["Resources"].get("GPU")]
    return [str(node["NodeID"]) for node in plain or alive]


def _quiet_node() -> str | None:
    places = quiet_nodes(ray.nodes())
    return random.choice(places) if places else None


async def exit_when_idle(used_at: Callable[[], float]) -> None:
    """End the actor that this runs in when it was last used, on the monotonic clock, long enough ago."""
    idle = 0.0
    while idle < IDLE_SECONDS:
        await asyncio.sleep(IDLE_SECONDS - idle)
        idle = time.monotonic() - used_at()
    ray.actor.exit_actor()
