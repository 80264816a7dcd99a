"""The vault as a Ray actor of its own: every ingress replica of a service uses the same one."""

import asyncio
from collections.abc import Sequence
from typing import Any

from serve_app.session.vault import Answer, Checkpoint, Saved, Vault, VaultUnavailable
from serve_app.shared_actor import ActorUnavailable, SharedActor, exit_when_idle


class VaultActor:
    """A vault in a process of its own."""

    def __init__(self, keep_seconds: float, capacity_bytes: int) -> None:
        self._vault = Vault(keep_seconds, capacity_bytes)
        self._idle = asyncio.get_event_loop().create_task(exit_when_idle(lambda: self._vault.used_at))

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """See `Vault.save`."""
        return self._vault.save(checkpoints, unchanged, over)

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """See `Vault.take`."""
        return self._vault.take(token, owner, hold)


class RayVault:
    """Reaches the service's vault, from any process of the cluster (implements `VaultClient`)."""

    def __init__(self, service: str, keep_seconds: float, capacity_bytes: int) -> None:
        """`service` names the vault; the other two count while it is made, and no more until it ends."""
        self._actor = SharedActor(VaultActor, f"{service}-vault", keep_seconds, capacity_bytes)

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
        except ActorUnavailable as error:
            raise VaultUnavailable(str(error)) from error
