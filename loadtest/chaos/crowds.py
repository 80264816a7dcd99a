"""Harm by clients: some that do not read, far too many at once, hundreds that come and go."""

import asyncio
import multiprocessing
import os
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import websockets

from loadtest.chaos import rude
from loadtest.chaos.attack import BEFORE_HARM_SECONDS, Attack, repeat
from loadtest.chaos.service import ServiceMisbehaves

REFUSAL_SECONDS = 1.0
REFUSAL_LIMIT_SECONDS = 2.0
"""How soon a client must hear that it is refused, and how much later it may on cores that carry everything else too."""

CROWD = 10
"""Clients that come at once, per slot."""

CROWD_NICENESS = 10
"""What the crowd itself computes has a machine of its own elsewhere: here it must not take the service's cores."""

MEMORY_LIMIT_BYTES = 64 * 2**20
"""Growth of the ingress during an overload that still counts as flat."""

SLOW_CLIENTS = 1
"""Of each kind."""

BUFFERS_FULL_SECONDS = 60.0
"""Until what a slow client does not read has filled every buffer between it and the session."""

STORM_SESSIONS = 300
STORM_AT_ONCE = 6


async def slow_clients(attack: Attack) -> None:
    """Clients that ask for events and do not read them, and one that sends a minute of audio as fast as it can."""
    await asyncio.sleep(BEFORE_HARM_SECONDS)
    attack.say(f"{SLOW_CLIENTS} that never read, {SLOW_CLIENTS} that read slowly, 1 that floods")
    rates = [None] * SLOW_CLIENTS + [0.5] * SLOW_CLIENTS
    url, seconds = attack.service.url, attack.time_left_s
    flooding = asyncio.create_task(_flood(attack))
    await asyncio.gather(*(rude.read_slowly(url, seconds, rate) for rate in rates))
    await flooding

    async def dropped() -> int:
        # Whoever does not read answers no ping either, and that is often noticed before any buffer is full.
        return sum([await attack.service.sessions_over(name) for name in ("slow_client", "disconnected")])

    async def all_dropped() -> bool:
        return await dropped() >= len(rates)

    try:
        await attack.service.wait_until(all_dropped, "every client that does not read dropped", timeout_s=15)
    except ServiceMisbehaves as error:
        attack.problem(f"{error}, got {await dropped()} of {len(rates)}")


async def _flood(attack: Attack) -> None:
    started_at = time.monotonic()
    answer = await rude.flood(attack.service.url, seconds=60.0)
    attack.note(f"a minute of audio at once was taken in {time.monotonic() - started_at:.1f} s")
    if answer != "done":
        attack.problem(f"the client that floods: expected done, got {answer}")


async def overload(attack: Attack) -> None:
    """Ten clients per slot at once while every slot is taken; none of them may get in, none may wait long."""
    ingress = (await attack.service.replicas("ingress"))[0].process
    answers: Counter[str] = Counter()
    times_s: list[float] = []
    memory: list[int] = []

    # In a process of its own: what it computes must not hold up the sessions that are measured here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=os.nice, initargs=(CROWD_NICENESS,)) as elsewhere:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(elsewhere, rude.crowd, attack.service.url, 0)

        async def arrive() -> None:
            size = CROWD * attack.service.slots
            attack.say(f"{size} clients arrive")
            memory.append(ingress.memory_info().rss)
            results = await loop.run_in_executor(elsewhere, rude.crowd, attack.service.url, size)
            memory.append(ingress.memory_info().rss)
            answers.update(answer for answer, _ in results)
            times_s.extend(seconds for _, seconds in results)

        await repeat(attack, arrive)
    attack.outcome.refused += answers.pop("at_capacity", 0)
    for answer, count in answers.items():
        attack.problem(f"{count} clients expected at_capacity, got {answer}")
    median, slowest = np.percentile(times_s, (50, 100))
    attack.note(f"refused within {median:.2f} s (median), {slowest:.2f} s (slowest)")
    if slowest > REFUSAL_LIMIT_SECONDS:
        attack.problem(f"expected a refusal within about {REFUSAL_SECONDS:g} s, the slowest took {slowest:.2f} s")
    # The first wave makes what every wave needs; the later ones must not add to it.
    growth = max(memory) - memory[1]
    attack.note(f"ingress memory {memory[0] / 2**20:.0f} MiB before, {max(memory) / 2**20:.0f} MiB at most")
    if growth > MEMORY_LIMIT_BYTES:
        attack.problem(f"the ingress grew by {growth / 2**20:.0f} MiB between the first wave and the last")


async def storm(attack: Attack) -> None:
    """Hundreds of short sessions that vanish, end or misbehave at random."""
    await asyncio.sleep(BEFORE_HARM_SECONDS)
    attack.say(f"{STORM_SESSIONS} short sessions")
    draw, answers, gate = random.Random(STORM_SESSIONS), Counter[str](), asyncio.Semaphore(STORM_AT_ONCE)
    processes = [r.process for name in ("ingress", "engine") for r in await attack.service.replicas(name)]
    files = sum(process.num_fds() for process in processes)

    async def one() -> None:
        async with gate:
            try:
                answers[await rude.come_and_go(attack.service.url, draw)] += 1
            except (TimeoutError, OSError, websockets.WebSocketException) as error:
                answers[f"{type(error).__name__}: {error}"] += 1

    started_at = time.monotonic()
    await asyncio.gather(*(one() for _ in range(STORM_SESSIONS)))
    attack.note(f"{STORM_SESSIONS} short sessions in {time.monotonic() - started_at:.0f} s: {dict(answers)}")
    attack.outcome.refused += sum(count for answer, count in answers.items() if answer.startswith("at_capacity"))
    for answer in answers.keys() - {"gone", "done", "invalid_message", "invalid_audio"}:
        attack.problem(f"{answers[answer]} short sessions: {answer}")
    await asyncio.sleep(2.0)
    attack.note(f"open files of ingress and engines: {files} before, {sum(p.num_fds() for p in processes)} after")
