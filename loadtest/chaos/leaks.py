"""Whether everything that sessions had taken comes back: by the service's account, and by taking it again."""

import asyncio
import contextlib

from loadtest.chaos.service import Service, ServiceMisbehaves
from serve_app import client

QUIET_SECONDS = 15.0
"""How long the service has to free what nobody uses any more."""

PROBE_TRIES = 3
"""Times to ask for each slot: what a session has just given back may take a moment."""


async def count_leaked_slots(service: Service) -> int:
    """Slots that stay taken although no session is left.

    An ingress knows only engines that it is connected to, so its account may be too good: every slot is also taken once
    more, which connects it to all of them.
    """
    await _wait_until_quiet(service)
    free = await _slots_to_be_had(service)
    await _wait_until_quiet(service)
    return max(await service.slots_used(), service.slots - free, 0)


async def _wait_until_quiet(service: Service) -> None:
    async def quiet() -> bool:
        return await service.slots_used() == 0  # sessions without a slot may wait for their clients to come back

    with contextlib.suppress(ServiceMisbehaves):
        await service.wait_until(quiet, "no slot in use", QUIET_SECONDS)


async def _slots_to_be_had(service: Service) -> int:
    """Hold as many sessions at once as there are slots; how many of them were let in."""
    answers: asyncio.Queue[bool] = asyncio.Queue()
    over = asyncio.Event()

    async def hold() -> None:
        for _ in range(PROBE_TRIES):
            with contextlib.suppress(client.ClientError):
                async with client.connect(service.url) as stream:
                    await anext(stream)
                    answers.put_nowait(True)
                    await over.wait()
                    return
            await asyncio.sleep(0.5)
        answers.put_nowait(False)

    async with asyncio.TaskGroup() as group:
        for _ in range(service.slots):
            group.create_task(hold())
        let_in = [await answers.get() for _ in range(service.slots)]  # bounded: by the tries and the client's timeouts
        over.set()
    return sum(let_in)
