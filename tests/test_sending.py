"""The end of a task that sends."""

import asyncio
import gc

import numpy as np
import pytest

from serve_app import client
from serve_app.client.sending import stop_sending
from serve_app.measuring.speaking import Manner, speak
from serve_app.samples import demo_clip
from tests.test_client import DONE, READY, peer, say


@pytest.mark.parametrize("outcome", [None, client.ServerSilent("it says nothing"), ZeroDivisionError("our own")])
async def test_only_our_own_mistakes_are_raised(outcome: Exception | None):
    began = asyncio.Event()

    async def send() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            if outcome:
                raise outcome

    sending = asyncio.create_task(send())
    await began.wait()
    if isinstance(outcome, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            await stop_sending(sending)
    else:
        await stop_sending(sending)
    assert sending.done()


async def transcribe(address: str) -> None:
    async for _ in client.transcribe(address, np.zeros(240_000, np.float32)):
        pass


async def hold(address: str) -> None:
    await speak(demo_clip(), Manner(address))


@pytest.mark.parametrize("session", [transcribe, hold])
async def test_who_is_cancelled_while_sending_is_stopped_is_cancelled(session, monkeypatch):
    began, stopping, may_stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send(*_: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await may_stop.wait()

    async def script(connection) -> None:
        await say(connection, READY)
        await began.wait()
        await say(connection, DONE)

    monkeypatch.setattr(client.Stream, "send", send)
    async with peer(script) as address, asyncio.timeout(60):
        running = asyncio.create_task(session(address))
        await stopping.wait()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        may_stop.set()


async def test_nobody_hears_of_a_failure_after_who_waited_was_cancelled():
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    may_fail = asyncio.Event()

    async def send() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_fail.wait()
            raise client.ServerSilent("it says nothing")

    sending = asyncio.create_task(send())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(stop_sending(sending))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    may_fail.set()
    await asyncio.wait([sending])
    del sending, stopping
    gc.collect()
    assert not heard
