"""The limits of an ingress replica's HTTP server, over real connections."""

import asyncio
import json

import msgpack
import pytest
import websockets
from websockets.frames import Frame, Opcode

from serve_app.ingress.http_server import CEILING_BYTES
from serve_app.settings import MEBIBYTE
from tests.support import answers_until_close, serving

TOO_LARGE = 16 * MEBIBYTE + 1
COMPLAINT = f"expected at most {16 * MEBIBYTE} bytes in a message, got {TOO_LARGE}"


@pytest.mark.parametrize(
    ("path", "message", "read", "expected"),
    [
        ("/v1/stream", bytes(TOO_LARGE), json.loads, {"type": "error", "code": "message_too_large"}),
        ("/v1/transcribe", bytes(TOO_LARGE), json.loads, {"status": "error", "code": "message_too_large"}),
        ("/api/asr-streaming", bytes(TOO_LARGE), msgpack.unpackb, {"type": "Error"}),
    ],
)
async def test_a_message_that_is_too_large_is_told_in_the_dialects_own_form(engines, path, message, read, expected):
    async with serving(engines) as service, websockets.connect(service.at(path)) as connection:
        await connection.send(message)
        last = read((await answers_until_close(connection))[-1])
        assert last == {**expected, "message": COMPLAINT}
        assert connection.close_code == 1009
        await service.wait_until_empty()


async def test_a_realtime_event_that_is_too_large(engines):
    async with serving(engines) as service, websockets.connect(service.at("/v1/realtime")) as connection:
        await connection.send("x" * TOO_LARGE)
        error = json.loads((await answers_until_close(connection))[-1])["error"]
        assert (error["code"], error["message"]) == ("message_too_large", COMPLAINT)
        assert connection.close_code == 1009


async def test_a_dialect_without_errors_has_its_close_frame(engines):
    async with serving(engines) as service, websockets.connect(service.at("/ws")) as connection:
        await connection.send(bytes(TOO_LARGE))
        assert await answers_until_close(connection) == []
        assert (connection.close_code, connection.close_reason) == (1009, f"message_too_large: {COMPLAINT}")


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/transcribe", "/ws", "/api/asr-streaming", "/v1/realtime"])
async def test_beyond_the_ceiling_the_close_frame_reaches_even_who_sends_everything_first(engines, path):
    async with serving(engines) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(Frame(Opcode.BINARY, bytes(CEILING_BYTES + 1)).serialize(mask=True, extensions=[]))
        async with asyncio.timeout(20):
            await writer.drain()
            told = await reader.read()  # all of it: no reset
        writer.close()
        assert b"\x03\xf1" in told  # 1009
        await service.wait_until_empty()
