"""Clients of plain HTTP that do not wait for their answer, or come all at once."""

import asyncio
import io
import threading

import numpy as np
import pytest

from serve_app.errors import AtCapacity
from serve_app.protocols.conversation import MEASURED_AT_ONCE
from serve_app.protocols.upload import measure
from tests.audio_signals import encoded
from tests.support import serving

UPLOAD = encoded(np.zeros(120 * 24_000, np.float32), 24_000, "flac", "flac")
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n' + UPLOAD + b"\r\n--x--\r\n"
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/api/asr-streaming", b"audio/flac", UPLOAD),
        ("/v1/audio/transcriptions", b"multipart/form-data; boundary=x", FORM),
    ],
)
async def test_nothing_stays_held_whenever_serve_cancels_as_well(engines, path, content_type, body):
    """Serve tells of a client that has left, and cancels the request's task a moment later."""
    async with serving(engines) as service:
        app = service.ingress.application()
        for turns in range(40):
            await _leave(app, path, content_type, body, turns, engines)
            await service.wait_until_empty()
        assert service.outcomes("left") == 40


async def test_few_uploads_are_measured_at_a_time_and_who_leaves_is_no_longer_in_the_way(engines):
    async with serving(engines) as service:
        works = [asyncio.create_task(measure(io.BytesIO(UPLOAD), service.ingress.host)) for _ in range(8)]
        most = 0
        while not works[-1].done():
            most = max(most, sum(thread.name.startswith("items") for thread in threading.enumerate()))
            works[3].cancel()  # which waits
            await asyncio.sleep(0.001)
        lengths = await asyncio.gather(*works, return_exceptions=True)
        assert isinstance(lengths.pop(3), asyncio.CancelledError)
        assert lengths == [120.0] * 7
        assert 0 < most <= 2 * MEASURED_AT_ONCE < len(works)  # each thread may still be on its way out


async def test_one_that_waits_too_long_to_be_measured_hears_of_it(engines):
    async with serving(engines, ingress={"max_wait_seconds": 0.2}) as service:
        host = service.ingress.host
        for _ in range(MEASURED_AT_ONCE):
            await host.measuring.acquire()
        with pytest.raises(AtCapacity, match=r"kept this one waiting for 0\.2 s"):
            await measure(io.BytesIO(UPLOAD), host)
        host.measuring.release()
        assert await measure(io.BytesIO(UPLOAD), host) == 120.0


async def _leave(app, path, content_type, body, turns, engines) -> None:
    """Send an upload, leave when it has a slot, and be cancelled so many turns of the event loop later."""
    has_left = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict:
        if message := next(messages, None):
            return message
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        pass

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1", "scheme": "http",
        "headers": [(b"content-type", content_type)], "server": ("a", 1), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    request = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(20):
        while not engines.slots_used():
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)  # and is being fed
    has_left.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
