"""Harm to whole nodes: everything on one of them is gone at once. The others have room for what it held."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import psutil

from loadtest.chaos.attack import BEFORE_HARM_SECONDS, Attack
from loadtest.chaos.nodes import Node, Nodes
from loadtest.chaos.service import ENGINES, Replica

INGRESSES = 2
"""Ingress replicas."""

VAULTS = 2

NODES = 5
"""Each has room for two replicas: Serve spreads the four over as many nodes, and the last two nodes can hold them."""

LEAST_SECONDS = 90.0
"""Audio for three losses, with time to recover from each."""

RECOVERY_SECONDS = 180.0
"""How long it may take until everything runs twice again."""

FILLED_SECONDS = 10.0
"""By then every ingress has noticed a new vault, and has saved every session to it."""


async def lose_nodes(attack: Attack) -> None:
    """SIGKILL for all on a node: that of the engine with the sessions, that of an ingress, that of a vault.

    Together with the last one every ingress dies, so that every session must come out of the other vault.
    """
    nodes = attack.service.nodes
    assert nodes
    await asyncio.sleep(BEFORE_HARM_SECONDS)
    await _recovered(attack, nodes)
    for lose in (_lose_engine, _lose_ingress, _lose_vault):
        if attack.time_left_s <= 0:
            attack.problem(f"{lose.__name__[1:]}: the sessions were over before it could be done")
            return
        killed_at = time.monotonic()
        await lose(attack, nodes)
        await _recovered(attack, nodes)
        attack.note(f"{lose.__name__[1:]}: everything ran twice again after {time.monotonic() - killed_at:.0f} s")
        await asyncio.sleep(FILLED_SECONDS)


async def _lose_engine(attack: Attack, nodes: Nodes) -> None:
    victim = await attack.service.busiest_engine()
    await _lose(attack, nodes, nodes.of(victim.process), "the engine with the sessions")


async def _lose_ingress(attack: Attack, nodes: Nodes) -> None:
    victim = (await attack.service.replicas("ingress"))[0]
    await _lose(attack, nodes, nodes.of(victim.process), "an ingress")


async def _lose_vault(attack: Attack, nodes: Nodes) -> None:
    node = next(node for node in nodes.workers if node.processes("VaultActor"))
    await _lose(attack, nodes, node, "a vault, and every ingress", await attack.service.replicas("ingress"))


async def _lose(attack: Attack, nodes: Nodes, node: Node, holds: str, others: Sequence[Replica] = ()) -> None:
    attack.say(f"killing the node of {holds}")
    for replica in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            replica.process.kill()
    await asyncio.to_thread(nodes.kill, node)


async def _recovered(attack: Attack, nodes: Nodes) -> None:
    """Wait until all replicas run, and vaults on two nodes."""
    service = attack.service

    async def all_there() -> bool:
        if [len(await service.replicas(deployment)) for deployment in ("engine", "ingress")] != [ENGINES, INGRESSES]:
            return False
        return sum(bool(node.processes("VaultActor")) for node in (nodes.head, *nodes.workers)) == VAULTS

    await service.wait_until(all_there, "two engines, two ingresses and vaults on two nodes", RECOVERY_SECONDS)
