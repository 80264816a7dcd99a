"""Harm to processes: engines and the ingress killed, an engine frozen."""

import asyncio
import signal
from collections.abc import Sequence

import psutil

from loadtest.chaos.attack import Attack, repeat
from loadtest.chaos.service import ENGINES, Replica
from serve_app.settings import LinkSettings

FROZEN_SECONDS = LinkSettings().timeout_seconds + 3.0
"""Longer than the link waits, shorter than Serve's health checks do."""


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

    async def kill() -> None:
        victims = await attack.service.replicas("ingress")
        attack.say("killing the ingress")
        await _kill(victims)
        names = frozenset(victim.name for victim in victims)
        await attack.service.wait_for_replicas("ingress", len(victims), without=names)

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


async def _kill(victims: Sequence[Replica]) -> None:
    for victim in victims:
        victim.process.kill()
    await asyncio.to_thread(psutil.wait_procs, [victim.process for victim in victims], timeout=5)
