"""The vault as Ray actors of its own: every ingress replica of a service uses the same ones.

There are two with the same content (see `vault_copies`), on different nodes, so that sessions survive the loss of a
node. A cluster of a single node has one.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.session.vault import Answer, Checkpoint, NoVault, Saved, Vault, VaultUnavailable
from serve_app.session.vault_copies import VaultCopies
from serve_app.shared_actor import (
    NAMESPACE,
    TIMEOUT_SECONDS,
    ActorUnavailable,
    SharedActor,
    exit_when_idle,
    quiet_nodes,
)


class VaultActor:
    """A vault in a process of its own."""

    def __init__(self, keep_seconds: float, capacity_bytes: int) -> None:
        self._vault = Vault(keep_seconds, capacity_bytes)
        self._idle = asyncio.get_event_loop().create_task(exit_when_idle(lambda: self._vault.used_at))

    async def node(self) -> str:
        """The id of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """See `Vault.save`."""
        return self._vault.save(checkpoints, unchanged, over)

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """See `Vault.take`."""
        return self._vault.take(token, owner, hold)


class NoPlace(ActorUnavailable):
    """There is no node for it."""


class RayVault:
    """Reaches one of a service's vaults, from any process of the cluster (implements `VaultClient`)."""

    def __init__(self, actor: SharedActor) -> None:
        self._actor = actor

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """See `Vault.save`. Raises VaultUnavailable."""
        answer: Answer = await self._call("save", list(checkpoints), list(unchanged), list(over))
        return answer

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """See `Vault.take`. Raises VaultUnavailable."""
        saved: Saved | None = await self._call("take", token, owner, hold)
        return saved

    async def _call(self, method: str, *arguments: object) -> Any:
        try:
            return await self._actor.call(method, *arguments)
        except NoPlace as error:
            raise NoVault(str(error)) from error
        except ActorUnavailable as error:
            raise VaultUnavailable(str(error)) from error


def ray_vaults(service: str, keep_seconds: float, capacity_bytes: int) -> VaultCopies:
    """The vaults of a service; the other arguments count while one is made, and no more until it ends."""
    first, second = f"{service}-vault", f"{service}-vault-2"
    sizes = keep_seconds, capacity_bytes

    def place(other: str, *, needed: bool) -> str | None:
        return place_vault(ray.nodes(), _node_of(other), needed=needed)

    return VaultCopies(
        [
            RayVault(SharedActor(VaultActor, first, *sizes, node=lambda: place(second, needed=False))),
            RayVault(SharedActor(VaultActor, second, *sizes, node=lambda: place(first, needed=True))),
        ]
    )


def _node_of(name: str) -> str | None:
    """The id of the node of a vault; None if there is no such vault, or it does not say."""
    try:
        return str(ray.get(ray.get_actor(name, NAMESPACE).node.remote(), timeout=TIMEOUT_SECONDS))
    except (ValueError, RayError):
        return None


def place_vault(nodes: Sequence[Mapping[str, Any]], taken: str | None, *, needed: bool) -> str | None:
    """The id of one of the `quiet_nodes` of Ray's that is not `taken`, if there is such a one; None for any.

    Raises NoPlace where a node beside `taken` is needed and there is none.
    """
    places = quiet_nodes(nodes)
    others = [name for name in places if name != taken]
    if needed and not (taken and others):
        raise NoPlace("a second vault needs a first one, and a second node (without GPUs, if there are any without)")
    return random.choice(others or places) if places else None
