"""One conversation over a WebSocket, of any dialect."""

import asyncio

import pytest

from tests.support import serving


@pytest.mark.parametrize("turns", range(8))
async def test_one_that_leaves_in_the_moment_it_gets_its_slot_is_no_failure_of_ours(engines, monkeypatch, turns):
    has_left = asyncio.Event()
    take_slot = engines.open

    async def take_slot_and_leave(*args, **options):
        stream = await take_slot(*args, **options)
        has_left.set()
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            await stream.close()
            raise
        return stream

    monkeypatch.setattr(engines, "open", take_slot_and_leave)
    messages = iter([{"type": "websocket.connect"}])

    async def receive() -> dict:
        if message := next(messages, None):
            return message
        await has_left.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: dict) -> None:
        pass

    scope = {
        "type": "websocket", "path": "/v1/stream", "query_string": b"", "headers": [], "subprotocols": [],
        "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    async with serving(engines) as service, asyncio.timeout(20):
        await service.ingress.application()(scope, receive, send)
        await service.wait_until_empty()
        assert not service.outcomes("internal_error")
        assert service.outcomes("disconnected") == 1
