"""One scenario from start to end: a service, the sessions undisturbed, the same sessions disturbed, what is left."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil

from loadtest.chaos.attack import Attack
from loadtest.chaos.leaks import count_leaked_slots
from loadtest.chaos.outcome import Outcome
from loadtest.chaos.scenarios import SCENARIOS, Scenario
from loadtest.chaos.service import ENGINES, Service, ServiceMisbehaves, started, started_on_nodes
from loadtest.chaos.sessions import PATIENCE_SECONDS, STAGGER_SECONDS, Heard, Script, speak, write_scripts
from serve_app.speech import SAMPLE_RATE_HZ

HARM_OVERTIME_SECONDS = 120.0
"""How long after its sessions a scenario may still be waiting for the service to recover."""


class Undisturbed(Exception):
    """The sessions are not through even without any harm: there is nothing to compare with."""


def run(name: str, sessions: int, seconds: float, log: Path, say: Callable[[str], None]) -> Outcome:
    """Do one scenario with so many sessions of at least `seconds` each; `log` gets what the service prints.

    Raises Undisturbed, ServiceMisbehaves, and what starting the service raises.
    """
    scenario = SCENARIOS[name]
    slots = math.ceil(sessions * scenario.room) + scenario.spare_slots
    say("starting the service")
    starting = (
        started_on_nodes(scenario.nodes, slots, scenario.args, log)
        if scenario.nodes
        else started(slots, scenario.args, log)
    )
    with starting as service:
        scripts = write_scripts(sessions, max(seconds, scenario.least_seconds))
        return asyncio.run(_run(name, scenario, service, scripts, say))


async def _run(
    name: str, scenario: Scenario, service: Service, scripts: Sequence[Script], say: Callable[[str], None]
) -> Outcome:
    await service.wait_for_replicas("engine", ENGINES)
    say(f"{len(scripts)} sessions, undisturbed")
    undisturbed = await _speak_all(service, scripts)
    if errors := {heard.error for heard in undisturbed if heard.error}:
        raise Undisturbed(f"sessions failed before any harm was done: {'; '.join(map(str, errors))}")

    say(f"{len(scripts)} sessions, disturbed")
    outcome = Outcome(name, len(scripts))
    ends_at = time.monotonic() + len(scripts[0].samples) / SAMPLE_RATE_HZ
    attack = Attack(service, outcome, ends_at, say)
    harming = asyncio.create_task(_harm(scenario, attack))
    disturbed = await _speak_all(service, scripts)
    await harming
    outcome.add_sessions(undisturbed, disturbed)

    say("looking for leaks")
    try:
        await service.wait_for_replicas("engine", ENGINES)
        outcome.slots_leaked = await count_leaked_slots(service)
    except (ServiceMisbehaves, httpx.HTTPError) as error:
        attack.problem(f"the service did not recover: {error!r}")
    return outcome


async def _speak_all(service: Service, scripts: Sequence[Script]) -> list[Heard]:
    everyone = [Heard() for _ in scripts]
    async with asyncio.TaskGroup() as group:
        for script, heard in zip(scripts, everyone, strict=True):
            group.create_task(speak(service.url, script, heard))
    return everyone


async def _harm(scenario: Scenario, attack: Attack) -> None:
    """Do the harm; what the service does not do in time becomes a problem of the outcome."""
    try:
        async with asyncio.timeout(attack.time_left_s + STAGGER_SECONDS + PATIENCE_SECONDS + HARM_OVERTIME_SECONDS):
            await scenario.harm(attack)
    except (ServiceMisbehaves, httpx.HTTPError, psutil.Error, TimeoutError, LookupError) as error:
        attack.problem(f"the harm could not be done to the end: {error!r}")
