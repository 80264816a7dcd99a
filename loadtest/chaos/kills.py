"""Harm to processes: engines, the ingress and the vault killed, an engine frozen."""

import asyncio
import signal
import time
from collections.abc import Sequence

import psutil

from loadtest.chaos.attack import Attack, repeat
from loadtest.chaos.service import ENGINES, Replica
from serve_app.settings import LinkSettings

FROZEN_SECONDS = LinkSettings().timeout_seconds + 3.0
"""Longer than the link waits, shorter than Serve's health checks do."""

SAVED_ONCE_SECONDS = 3.0
"""By then the ingress has noticed that the vault is gone and has saved to a new one, if it can."""


async def kill_an_engine(attack: Attack) -> None:
    """SIGKILL for the engine that has the sessions; the other one has room for all of them."""

    async def kill() -> None:
        victim = await attack.service.busiest_engine()
        attack.say(f"killing engine {victim.name}")
        await _kill([victim])
        await attack.service.wait_for_replicas("engine", ENGINES, without=frozenset({victim.name}))

    await repeat(attack, kill)


async def kill_all_engines(attack: Attack) -> None:
    """SIGKILL for every engine at once: the sessions wait for a replacement."""

    async def kill() -> None:
        victims = await attack.service.replicas("engine")
        attack.say(f"killing all {len(victims)} engines")
        await _kill(victims)
        await attack.service.wait_for_replicas("engine", ENGINES, without=frozenset(victim.name for victim in victims))

    await repeat(attack, kill)


async def kill_the_ingress(attack: Attack) -> None:
    """SIGKILL for the ingress, which every client is connected to."""
    await repeat(attack, lambda: _kill_ingress(attack))


async def kill_the_vault(attack: Attack) -> None:
    """SIGKILL for the process that holds all checkpoints, then, once every session is saved again, for the ingress."""

    async def kill() -> None:
        vault = await attack.service.vault()
        attack.say("killing the vault")
        vault.kill()
        killed_at = time.monotonic()
        await asyncio.to_thread(vault.wait, 5)

        async def saved_again() -> bool:
            return await attack.service.sessions_saved() >= attack.outcome.sessions

        await asyncio.sleep(SAVED_ONCE_SECONDS)  # until then the ingress tells what the dead vault said last
        await attack.service.wait_until(saved_again, "every session in the new vault", timeout_s=20)
        attack.note(f"every session was saved again {time.monotonic() - killed_at:.1f} s after the vault's death")
        await _kill_ingress(attack)

    await repeat(attack, kill)


async def cut_the_network(attack: Attack) -> None:
    """Freeze the engine that has the sessions for longer than the link waits, then let it go on.

    That is what a partition looks like on one machine: connections stay open and nothing comes.
    """

    async def freeze() -> None:
        victim = await attack.service.busiest_engine()
        attack.say(f"freezing engine {victim.name} for {FROZEN_SECONDS:g} s")
        victim.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_SECONDS)
        finally:
            victim.process.send_signal(signal.SIGCONT)
        await attack.service.wait_for_replicas("engine", ENGINES)

    await repeat(attack, freeze)


async def _kill_ingress(attack: Attack) -> None:
    victims = await attack.service.replicas("ingress")
    attack.say("killing the ingress")
    await _kill(victims)
    names = frozenset(victim.name for victim in victims)
    await attack.service.wait_for_replicas("ingress", len(victims), without=names)


async def _kill(victims: Sequence[Replica]) -> None:
    for victim in victims:
        victim.process.kill()
    await asyncio.to_thread(psutil.wait_procs, [victim.process for victim in victims], timeout=5)
