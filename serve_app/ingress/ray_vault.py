"""The vault as a Ray actor of its own: it outlives ingress replicas, deploys, and the application.

Every ingress replica of a service uses the same one, by name. It is made when somebody first needs it, comes back empty
if its process dies, and ends by itself when nobody has used it for a while.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.session.vault import Answer, Checkpoint, Saved, Vault, VaultUnavailable

NAMESPACE = "stt"
"""Ray namespace of the vaults."""

TIMEOUT_SECONDS = 2.0
"""How long the vault may take to answer."""

IDLE_SECONDS = 600.0
"""An unused vault ends after so long: its application is gone."""


class VaultActor:
    """A vault in a process of its own."""

    def __init__(self, keep_seconds: float, capacity_bytes: int) -> None:
        self._vault = Vault(keep_seconds, capacity_bytes)
        self._idle = asyncio.get_event_loop().create_task(self._end_when_idle())

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """See `Vault.save`."""
        return self._vault.save(checkpoints, unchanged, over)

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """See `Vault.take`."""
        return self._vault.take(token, owner, hold)

    async def _end_when_idle(self) -> None:
        idle = 0.0
        while idle < IDLE_SECONDS:
            await asyncio.sleep(IDLE_SECONDS - idle)
            idle = time.monotonic() - self._vault.used_at
        ray.actor.exit_actor()


class RayVault:
    """Reaches the service's vault, from any process of the cluster (implements `VaultClient`)."""

    def __init__(self, service: str, keep_seconds: float, capacity_bytes: int) -> None:
        """`service` names the vault; the other two count while it is made, and no more until it ends."""
        self._name = f"{service}-vault"
        self._arguments = (keep_seconds, capacity_bytes)
        self._actor: Any = None

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
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                return await getattr(self._actor, method).remote(*arguments)
        except TimeoutError:
            raise VaultUnavailable(f"the vault did not answer within {TIMEOUT_SECONDS:g} s") from None
        except (RayError, ValueError) as error:
            self._actor = None  # it may have ended for good: the next call makes another one
            raise VaultUnavailable(f"the vault is gone: {error!r}") from error

    def _find(self) -> Any:
        return (
            ray.remote(VaultActor)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=64,
            )
            .remote(*self._arguments)
        )
