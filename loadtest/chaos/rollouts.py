"""Harm that is nobody's fault: new configs, other numbers of engines."""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np

from loadtest.chaos.attack import Attack, repeat
from loadtest.chaos.service import ENGINES, Replica, Service
from serve_app import client

INGRESS_DRAIN_SECONDS = 35.0
"""For so long Serve keeps an ingress replica that it replaces; then it kills it, with all connections."""


CROWD = 17
"""Idle clients that need a second ingress replica."""

INGRESS_SCALING = {"max_replicas": 2, "target_connections": CROWD - 1, "scaledown_window_seconds": 2.0}
"""`ingress.autoscaling`: with at most as many sessions as the target, one replica is enough without the crowd."""


async def redeploy(attack: Attack) -> None:
    """`serve deploy` of changed `args`: Serve rolls every deployment of the application, the ingress too."""
    waits = iter(np.linspace(0.001, 0.02, 100).tolist())

    async def deploy() -> None:
        before = await _names(attack.service, "engine", "ingress")
        attack.say("deploying another max_wait_seconds")
        await attack.service.deploy(args={"engine": {"max_wait_seconds": next(waits)}})
        await attack.service.wait_for_replicas("engine", ENGINES, without=before)
        await attack.service.wait_for_replicas("ingress", 1, without=before)

    await repeat(attack, deploy)


async def roll_engines(attack: Attack) -> None:
    """`serve deploy` with other `ray_actor_options` of the engine: Serve rolls the engines alone."""
    shares = iter(np.linspace(0.2, 0.29, 100).tolist())

    async def deploy() -> None:
        before = await _names(attack.service, "engine")
        attack.say("rolling the engines")
        await attack.service.deploy(engine_deployment={"ray_actor_options": {"num_cpus": next(shares)}})
        await attack.service.wait_for_replicas("engine", ENGINES, without=before)

    await repeat(attack, deploy)


async def drain(attack: Attack) -> None:
    """Scale the engines in to one and out again; Serve stops the newest, so the sessions are spread over both."""

    async def scale() -> None:
        before = await attack.service.replicas("engine")
        attack.say("scaling in to one engine")
        asked_at = time.monotonic()
        await attack.service.deploy(engine_deployment={"num_replicas": 1})
        await attack.service.wait_for_replicas("engine", 1)
        left = await _names(attack.service, "engine")
        await _wait_for_the_end(attack.service, [replica for replica in before if replica.name not in left])
        attack.note(f"a drained engine had ended after {time.monotonic() - asked_at:.1f} s")
        attack.say(f"scaling out to {ENGINES} engines")
        await attack.service.deploy(engine_deployment={"num_replicas": ENGINES})
        await attack.service.wait_for_replicas("engine", ENGINES)

    await repeat(attack, scale)


async def scale_ingress(attack: Attack) -> None:
    """A crowd comes, for which a second ingress replica is started, and goes: the sessions on what is stopped move."""

    async def come_and_go() -> None:
        attack.say(f"{CROWD} clients come")
        asked_at = time.monotonic()
        async with AsyncExitStack() as crowd:
            for _ in range(CROWD):
                await crowd.enter_async_context(client.connect(attack.service.url, resume_s=0))
            await attack.service.wait_for_replicas("ingress", 2)
            attack.note(
                f"a second ingress replica ran {time.monotonic() - asked_at:.1f} s after the crowd began to come"
            )
        attack.say("they go")
        await attack.service.wait_for_replicas("ingress", 1)

    await repeat(attack, come_and_go)


async def _names(service: Service, *deployments: str) -> frozenset[str]:
    return frozenset([replica.name for name in deployments for replica in await service.replicas(name)])


async def _wait_for_the_end(service: Service, replicas: Sequence[Replica]) -> None:
    async def ended() -> bool:
        return not any(replica.process.is_running() for replica in replicas)

    await service.wait_until(ended, f"the end of {[replica.name for replica in replicas]}", timeout_s=60)
