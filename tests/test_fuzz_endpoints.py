"""Clients that keep no rule, on every endpoint, over real sockets; a session beside them loses nothing."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import websockets
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve_app import errors
from tests.support import Service, running_engines, serving

PAGES = ["/", "/health", "/healthz", "/readyz", "/status", "/metrics", "/v1/models"]
PATHS = [*PAGES, "/v1/stream", "/v1/realtime", "/v1/audio/transcriptions"]
ERRORS = {kind.code: kind.close_code for kind in vars(errors).values()
          if isinstance(kind, type) and issubclass(kind, errors.SpeechError)}  # fmt: skip
SERVER_FAILURES = ("internal_error", "step_failed", "engine_lost")
"""Errors that say the fault is ours: no client may be able to cause them."""

UPGRADE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CHUNK = np.zeros(1_920, "<f4").tobytes()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all examples of a test."""
    with asyncio.Runner() as made:
        yield made


class Beside:
    """A service, and a well-behaved session there, which sends a frame after each example and is flushed in the end."""

    async def start(self, model) -> None:
        self._stack = contextlib.AsyncExitStack()
        engines = await self._stack.enter_async_context(running_engines(model))
        self.service: Service = await self._stack.enter_async_context(
            serving(engines, session={"resume_window_seconds": 0.2}, ingress={"max_message_bytes": 65_536})
        )
        self._connection = await self._stack.enter_async_context(websockets.connect(self.service.url))
        assert json.loads(await self._connection.recv())["type"] == "ready"
        self._failures = 0.0

    async def check(self) -> None:
        """The neighbour is answered, every other session is over and its slot free, no failure of ours was counted."""
        await self._connection.send(CHUNK)
        await self._connection.send('{"type": "flush"}')
        async with asyncio.timeout(10):
            while (kind := json.loads(await self._connection.recv())["type"]) != "flushed":
                assert kind in ("token", "vad_end", "ping"), kind
            while self.service.engines.slots_used() != 1 or len(self.service.ingress.sessions) != 1:
                await asyncio.sleep(0.005)
        before, self._failures = self._failures, sum(self.service.outcomes(code) for code in SERVER_FAILURES)
        assert self._failures == before

    async def stop(self) -> None:
        await self._stack.aclose()


@pytest.fixture(scope="module")
def beside(runner, demo_model) -> Iterator[Beside]:
    made = Beside()
    runner.run(made.start(demo_model))
    yield made
    runner.run(made.stop())


async def exchange(port: int, *pieces: bytes) -> bytes:
    """Send these bytes, say that no more come, and return what the server says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    # A server may keep a connection open for its next request: it has had its time to answer.
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(0.3):
            while more := await reader.read(65_536):
                received += more
    writer.close()
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(line.split(b" ")[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


TOKENS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
LONG = st.sampled_from(["x" * 7_000, "x" * 9_000, "x" * 70_000, "%00" * 500, "/../" * 200])
TARGETS = st.one_of(
    st.sampled_from(PATHS),
    st.builds("{}{}".format, st.sampled_from(PATHS), TOKENS | LONG),
    st.builds("{}?{}={}".format, st.sampled_from(PATHS), TOKENS, TOKENS | LONG),
    st.builds("/{}".format, TOKENS | LONG),
    TOKENS,
)
METHODS = st.one_of(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PRI", "get"]),
    TOKENS,
)
HEADERS = st.lists(
    st.one_of(
        st.tuples(TOKENS, TOKENS | LONG),
        st.sampled_from(
            [
                ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Connection", "close"), ("Upgrade", "h2c"),
                ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Version", "99"), ("Sec-WebSocket-Key", "short"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Extensions", "permessage-deflate"),
                ("Sec-WebSocket-Protocol", "realtime, x"), ("Content-Length", "10"), ("Content-Length", "-1"),
                ("Content-Length", "99999999999999999999"), ("Transfer-Encoding", "chunked"), ("Host", ""),
                ("X-Forwarded-For", "1.2.3.4"), ("Expect", "100-continue"), ("Authorization", "\xff\xfe"),
                ("Accept", "application/openmetrics-text"), ("Accept", "\x00"), ("Range", "bytes=0-0"),
            ]
        ),
    ),
    max_size=12,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    lines = [f"{draw(METHODS)} {draw(TARGETS)} {draw(st.sampled_from(['HTTP/1.1', 'HTTP/1.0', 'HTTP/9.9', '']))}"]
    lines += [f"{name}: {value}" for name, value in draw(HEADERS)] + ["Host: localhost"] * draw(st.integers(0, 2))
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + draw(st.binary(max_size=50))


@given(wire=st.one_of(requests(), st.binary(max_size=400), st.lists(requests(), max_size=3).map(b"".join)))
@hypothesis_settings(max_examples=80)
def test_no_request_makes_the_server_fail(runner, beside, wire):
    async def example() -> None:
        answer = await exchange(beside.service.port, wire)
        assert all(status < 500 for status in statuses(answer)), answer[:300]
        await beside.check()

    runner.run(example())


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_wrong_method_is_405(runner, beside, method, path):
    wire = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc".encode()
    assert statuses(runner.run(exchange(beside.service.port, wire))) == [405]


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v1/stream?x=" + b"x" * 9_000 + b" HTTP/1.1\r\n",
        b"GET /v1/stream HTTP/1.1\r\nCookie: " + b"x" * 9_000 + b"\r\n",
        b"GET /v1/stream HTTP/1.1\r\n" + b"X-Again: x\r\n" * 200,
        b"GET /v1/stream HTTP/1.1\r\nContent-Length: 5\r\n",
        b"GET /v1/str\xc3\xa9am HTTP/1.1\r\n",
        b"GET /v1/stream HTTP/1.1\r\nSec-WebSocket-Version: 99\r\n",
    ],
    ids=["long query", "long header", "many headers", "body", "no ascii", "two versions"],
)
def test_a_handshake_that_cannot_be_read_is_answered(runner, beside, start):
    async def example() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", beside.service.port)
        writer.write(start + UPGRADE)
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 4")
        writer.close()

    runner.run(example())


KNOWN_PAYLOADS = [b"", b"EOS", b'{"type": "flush"}', b'{"type": "end"}', b"\xff\xfe", b"\xc3", CHUNK, bytes(70_000)]
CLOSE_CODES = st.integers(0, 65_535).map(lambda code: struct.pack("!H", code))
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(KNOWN_PAYLOADS),
    st.builds(lambda code, reason: code + reason, CLOSE_CODES, st.binary(max_size=130)),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A WebSocket frame that may break any rule: flags, opcode, mask, length."""
    payload = draw(PAYLOADS)
    first = (
        draw(st.sampled_from([0x80, 0x80, 0x80, 0x00]))
        | draw(st.sampled_from([0, 0, 0, 0x10, 0x20, 0x40]))
        | draw(st.one_of(st.sampled_from([0x0, 0x1, 0x2, 0x8, 0x9, 0xA]), st.integers(0, 15)))
    )
    masked = 0x80 if draw(st.sampled_from([True, True, True, False])) else 0
    claimed = draw(st.sampled_from([len(payload)] * 5 + [0, 125, 2**16, 2**40, 2**63 - 1, 2**64 - 1]))
    if claimed < 126 and draw(st.sampled_from([True, True, False])):
        head = struct.pack("!BB", first, masked | claimed)
    elif claimed < 65_536:
        head = struct.pack("!BBH", first, masked | 126, claimed)
    else:
        head = struct.pack("!BBQ", first, masked | 127, claimed)
    return head + (bytes(4) if masked else b"") + payload


def server_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The server's frames: opcode and payload; what is cut off at the end is left out."""
    while len(data) >= 2:
        length, start = data[1] & 0x7F, 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            return
        yield data[0] & 0xF, data[start : start + length]
        data = data[start + length :]


def check_answer(answer: bytes) -> None:
    """Whatever the server says is in the dialect; an error closes with the code that belongs to it."""
    error = None
    for opcode, payload in server_frames(answer):
        if opcode == 0x1:
            assert error is None, "nothing follows an error"
            message = json.loads(payload)
            assert message["type"] in ("ready", "token", "vad_end", "flushed", "status", "done", "ping", "error")
            if message["type"] == "error":
                error = message["code"]
                assert error in ERRORS
                assert error not in SERVER_FAILURES
                assert "expected" in message["message"]
        elif opcode == 0x8:
            code = int.from_bytes(payload[:2], "big")
            if error:
                assert code == ERRORS[error]
            else:
                assert code not in (1011, 1006, 1005)
            payload[2:].decode()
            return


@given(
    query=st.sampled_from(["", "", "?words=true", "?words=%ff", "?resume=x&last_seq=1"]),
    wires=st.lists(frames(), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.none(), st.integers(0, 300)),
)
@hypothesis_settings(max_examples=60)
def test_no_frame_makes_the_server_fail(runner, beside, query, wires, cut):
    async def example() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", beside.service.port)
        writer.write(f"GET /v1/stream{query} HTTP/1.1\r\n".encode() + UPGRADE)
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(b"".join(wires)[:cut])
            await writer.drain()
            async with asyncio.timeout(0.5):
                while more := await reader.read(65_536):
                    answer += more
        writer.transport.abort()
        check_answer(answer)
        await beside.check()

    runner.run(example())


CONTROLS = [
    "EOS",
    b"EOS",
    '{"type": "flush"}',
    '{"type": "end"}',
    '{"type": "start"}',
    "{}",
    "[]",
    "null",
    "",
    b"",
    "\0",
]


@pytest.mark.parametrize(
    "bad", [b"\x84\x80\0\0\0\0", b"\xc2\x80\0\0\0\0", b"\x82\x01x"], ids=["opcode", "bits", "no mask"]
)
def test_a_client_that_breaks_the_protocol_at_once_is_no_failure_of_ours(runner, beside, bad):
    """It does so while its session is being opened, so that the first message to it fails."""

    async def example() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", beside.service.port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\n" + UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bad)
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
        writer.close()
        await beside.check()

    runner.run(example())


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)
MESSAGES = st.one_of(
    st.sampled_from(CONTROLS),
    st.text(max_size=200),
    st.binary(max_size=300),
    DOCUMENTS.map(json.dumps),
    st.sampled_from([CHUNK, CHUNK * 5, CHUNK[:-1], bytes(65_536), bytes(65_537), "x" * 65_537, "é" * 40_000]),
    st.lists(st.floats(width=32), max_size=20).map(lambda samples: np.array(samples, "<f4").tobytes()),
)  # fmt: skip


@given(messages=st.lists(MESSAGES, max_size=12), leaves=st.sampled_from(["politely", "abruptly", "when done"]))
@hypothesis_settings(max_examples=60)
def test_any_messages_in_any_order_end_in_the_dialects_own_form(runner, beside, messages, leaves):
    async def example() -> None:
        events = []
        async with websockets.connect(beside.service.url, compression=None) as connection:
            with contextlib.suppress(websockets.ConnectionClosed):
                events.append(json.loads(await connection.recv()))
                for message in messages:
                    await connection.send(message)
                if leaves == "when done":
                    await connection.send("EOS")
                    async with asyncio.timeout(20):
                        while True:
                            events.append(json.loads(await connection.recv()))
            if leaves == "abruptly":
                connection.transport.abort()
        assert events[0]["type"] == "ready"
        if leaves == "when done":
            last = events[-1]
            assert last["type"] in ("done", "error")
            if last["type"] == "done":
                assert connection.close_code == 1000
            else:
                assert last["code"] not in SERVER_FAILURES
                assert "expected" in last["message"]
                assert connection.close_code == ERRORS[last["code"]]
        await beside.check()

    runner.run(example())
