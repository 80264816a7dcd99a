"""The client against real WebSocket servers that follow a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from serve_app import client
from serve_app.client.address import http_url, is_loopback, stream_url
from serve_app.client.events import Failure, Ping, parse

READY = {"type": "ready", "session_id": "s1", "model": "demo"}
DONE = {"type": "done", "audio_seconds": 1.0}

Script = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def peer(script: Script, **options: object) -> AsyncIterator[str]:
    """A server on a free port of this machine; the value is its host:port."""

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await script(connection)

    async with serve(handle, "127.0.0.1", 0, close_timeout=1, **options) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def say(connection: ServerConnection, *messages: object) -> None:
    for message in messages:
        await connection.send(message if isinstance(message, str | bytes) else json.dumps(message))


async def until_end(connection: ServerConnection) -> np.ndarray:
    """Everything the client sends, up to its end."""
    audio = b""
    async for message in connection:
        if isinstance(message, str):
            assert json.loads(message) == {"type": "end"}
            break
        audio += message
    return np.frombuffer(audio, "<f4")


async def events(address: str, **options: object) -> list[client.Event]:
    async with client.connect(address, **options) as stream:
        return [event async for event in stream]


async def test_a_whole_session():
    received = []

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        received.append(await connection.recv())
        received.append(json.loads(await connection.recv()))
        await say(connection, {"type": "token", "text": " seven"}, {"type": "flushed"})
        received.append(json.loads(await connection.recv()))
        await say(connection, {"type": "word", "text": "seven", "start": 1.2, "end": 1.6}, {"type": "vad_end"}, DONE)

    samples = np.array([0.0, 0.5, -1.0])
    async with peer(script) as address, client.connect(f"ws://{address}") as stream:
        assert await anext(stream) == client.Ready(session_id="s1", model="demo")
        await stream.send(samples)
        await stream.flush()
        assert await anext(stream) == client.Token(text=" seven")
        assert await anext(stream) == client.Flushed()
        await stream.end()
        assert [event async for event in stream] == [
            client.Word(text="seven", start=1.2, end=1.6),
            client.TurnEnd(),
            client.Done(audio_seconds=1.0),
        ]
        assert [event async for event in stream] == []
    assert received == [samples.astype("<f4").tobytes(), {"type": "flush"}, {"type": "end"}]


async def test_pings_stay_inside_and_unknown_types_do_no_harm():
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY | {"since": 7}, {"type": "ping"}, {"type": "mood", "value": [1]}, DONE)

    async with peer(script) as address:
        assert await events(address) == [
            client.Ready(session_id="s1", model="demo"),
            client.Unknown(type="mood", fields={"value": [1]}),
            client.Done(audio_seconds=1.0),
        ]


@pytest.mark.parametrize(
    "message",
    ["{", "[]", '"ready"', "{}", '{"type": 1}', '{"type": "token"}', '{"type": "word", "text": "a"}', b"\x00"],
)
async def test_garbage_is_a_protocol_violation(message: str | bytes):
    async with peer(lambda connection: say(connection, message)) as address:
        with pytest.raises(client.ProtocolViolation):
            await events(address)


async def test_text_that_is_not_utf8_is_an_error_of_ours():
    async def script(connection: ServerConnection) -> None:
        await connection.send(b"\xff\xfe", text=True)
        await connection.wait_closed()

    async with peer(script) as address:
        with pytest.raises(client.ClientError):
            await events(address)


async def test_a_server_at_capacity_says_when_to_come_back():
    async def script(connection: ServerConnection) -> None:
        await say(connection, {"type": "error", "code": "at_capacity", "message": "all taken", "retry_after_s": 5})
        await connection.close(1013, "all taken")

    async with peer(script) as address:
        with pytest.raises(client.ServerError) as caught:
            await events(address)
    assert (caught.value.code, caught.value.message, caught.value.retry_after_s) == ("at_capacity", "all taken", 5)


async def test_capacity_is_understood_from_the_close_code_alone():
    async with peer(lambda connection: connection.close(1013, "full")) as address:
        with pytest.raises(client.ServerError) as caught:
            await events(address)
    assert (caught.value.code, caught.value.message) == ("at_capacity", "full")


async def test_the_error_comes_before_the_loss_even_while_sending():
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        await connection.recv()
        await say(connection, {"type": "error", "code": "invalid_audio", "message": "NaN"})
        await connection.close(1007, "NaN")

    async with peer(script) as address:
        with pytest.raises(client.ServerError, match=r"NaN \(invalid_audio\)"):
            async for _ in client.transcribe(address, np.zeros(480_000, np.float32), rtf=0):
                pass


@pytest.mark.parametrize(("code", "words"), [(1000, "before the session was over"), (1011, r"oops \(code 1011\)")])
async def test_a_close_without_done_is_a_lost_connection(code: int, words: str):
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        await connection.close(code, "oops")

    async with peer(script) as address:
        with pytest.raises(client.ConnectionLost, match=words):
            await events(address)


async def test_a_connection_that_breaks_off_is_lost():
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        connection.transport.abort()

    async with peer(script) as address:
        with pytest.raises(client.ConnectionLost, match="broke off"):
            await events(address)


async def test_sending_to_a_closed_connection_is_reported():
    async with (
        peer(lambda connection: connection.close(1011, "gone")) as address,
        client.connect(address) as stream,
    ):
        with pytest.raises(client.ConnectionLost):
            await anext(stream)
        with pytest.raises(client.ConnectionLost):
            await stream.send(np.zeros(10))


async def test_silence_ends_the_wait():
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        await connection.wait_closed()

    async with peer(script) as address, client.connect(address, timeout_s=0.05) as stream:
        assert await anext(stream) == client.Ready(session_id="s1", model="demo")
        with pytest.raises(client.ServerSilent):
            await anext(stream)


async def test_a_server_that_takes_no_audio_ends_the_wait():
    async def script(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await over.wait()
        connection.transport.abort()

    over = asyncio.Event()
    async with peer(script, compression=None) as address:
        with pytest.raises(client.ServerSilent, match="took no audio"):
            async with client.connect(address, timeout_s=0.2) as stream:
                for _ in range(100):
                    await stream.send(np.zeros(2**18))
        over.set()


async def test_an_endless_handshake_ends_the_wait():
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(client.ServerSilent, match="no answer"):
            await events(f"127.0.0.1:{port}", open_timeout_s=0.1)


async def test_nobody_there(unused_tcp_port: int):
    with pytest.raises(client.ConnectionRefused, match="no connection"):
        await events(f"127.0.0.1:{unused_tcp_port}")


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
async def test_the_key_is_sent_and_its_refusal_understood(status: HTTPStatus):
    def check(connection: ServerConnection, request):
        if request.headers.get("Authorization") != "Bearer open sesame":
            return connection.respond(status, "no")
        return None

    async with peer(lambda connection: say(connection, READY, DONE), process_request=check) as address:
        with pytest.raises(client.KeyRefused, match="an API key"):
            await events(address)
        with pytest.raises(client.KeyRefused, match="another API key"):
            await events(address, api_key="guess")
        assert len(await events(address, api_key="open sesame")) == 2


@pytest.mark.parametrize(("headers", "certain"), [({}, False), ({"WWW-Authenticate": "Bearer"}, True)])
async def test_a_403_may_mean_a_wrong_path(headers: dict[str, str], certain: bool):
    def refuse(connection: ServerConnection, request):
        response = connection.respond(HTTPStatus.FORBIDDEN, "no")
        response.headers.update(headers)
        return response

    async with peer(say, process_request=refuse) as address:
        with pytest.raises(client.KeyRefused) as caught:
            await events(f"{address}/v1/streams")
    assert ("the path is wrong" in str(caught.value)) is not certain


async def test_another_http_answer_is_no_connection():
    def check(connection: ServerConnection, request):
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "loading")

    async with peer(lambda connection: say(connection, READY), process_request=check) as address:
        with pytest.raises(client.ConnectionRefused, match="HTTP 503"):
            await events(address)


async def test_words_and_pauses_are_asked_for_in_the_query():
    asked = []

    async def script(connection: ServerConnection) -> None:
        asked.append(connection.request.path)
        await say(connection, READY, DONE)

    async with peer(script) as address:
        await events(address)
        await events(f"http://{address}", words=True, confidence=True, pauses=True, settled=True)
    everything = "words=true&confidence=true&pauses=true&settled=true"
    assert asked == ["/v1/stream?resumable=true", f"/v1/stream?{everything}&resumable=true"]


async def test_nothing_is_sent_after_the_end():
    received = []

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        received.append(await until_end(connection))
        await say(connection, DONE)

    async with peer(script) as address, client.connect(address) as stream:
        await stream.send(np.ones(10))
        await stream.end()
        for late in (stream.send(np.ones(10)), stream.flush(), stream.end()):
            with pytest.raises(RuntimeError, match="after the end of the audio"):
                await late
        assert [event.type async for event in stream] == ["ready", "done"]
    assert len(received[0]) == 10


async def test_samples_of_another_shape_are_refused():
    async with (
        peer(lambda connection: connection.wait_closed()) as address,
        client.connect(address) as stream,
    ):
        with pytest.raises(ValueError, match="one dimension"):
            await stream.send(np.zeros((2, 2)))


@pytest.mark.parametrize("rtf", [0, 200])
async def test_transcribe_sends_everything_and_records_when(rtf: float):
    heard = []

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        heard.append(await until_end(connection))
        await say(connection, {"type": "token", "text": " one"}, DONE)

    samples = np.linspace(-1, 1, 1_920 * 4 + 100, dtype=np.float32)
    pace = client.Pace()
    async with peer(script) as address:
        arrivals = [arrival async for arrival in client.transcribe(address, samples, rtf=rtf, pace=pace)]
    assert [type(arrival.event).__name__ for arrival in arrivals] == ["Ready", "Token", "Done"]
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)
    assert np.array_equal(heard[0], samples)
    assert len(pace.lateness_s) == len(pace.sent_at_s) == 5
    assert min(pace.lateness_s) >= 0
    assert pace.when_sent_s(0.33) == pace.sent_at_s[4]


async def test_transcribe_in_the_middle_of_which_the_caller_leaves():
    closed = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY, {"type": "token", "text": " one"})
        await connection.wait_closed()
        closed.set()

    async with peer(script) as address:
        stream = client.transcribe(address, np.zeros(240_000, np.float32))
        async for arrival in stream:
            if isinstance(arrival.event, client.Token):
                break
        await stream.aclose()
        await asyncio.wait_for(closed.wait(), 10)


@pytest.mark.parametrize(("samples", "rtf"), [(np.zeros((2, 2)), 1), (np.zeros(2), -1), (np.zeros(2), float("nan"))])
async def test_transcribe_refuses_nonsense(samples: np.ndarray, rtf: float):
    with pytest.raises(ValueError, match="expected"):
        await anext(client.transcribe("127.0.0.1:1", samples, rtf=rtf))


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("localhost:8000", "ws://localhost:8000/v1/stream"),
        ("10.0.0.1", "ws://10.0.0.1/v1/stream"),
        ("[::1]:8000/", "ws://[::1]:8000/v1/stream"),
        ("ws://a:1/other", "ws://a:1/other"),
        ("http://a", "ws://a/v1/stream"),
        ("https://a/v1/stream?x=1", "wss://a/v1/stream?x=1"),
        ("WSS://a:443", "wss://a:443/v1/stream"),
    ],
)
def test_forms_of_an_address(address: str, url: str):
    assert stream_url(address) == url


def test_other_pages_of_the_same_server():
    assert http_url("localhost:8000", "/status") == "http://localhost:8000/status"
    assert http_url("https://a:1/v1/stream?x=1", "/metrics") == "https://a:1/metrics"


def test_words_replace_what_the_query_says_about_them():
    assert stream_url("ws://a/b?x=1&words=false", {"words": "true"}) == "ws://a/b?x=1&words=true"


@pytest.mark.parametrize(
    "address",
    [
        *("", "ftp://a", "ws://", "a:port", "ws://[::1", "two words"),
        *("ws://a..b", "ws://.a", f"ws://{'a' * 70}.com", f"ws://{'ü' * 70}", "ws://a\u2028b", "ws://xn--\ud800"),
    ],
)
def test_what_is_no_address(address: str):
    with pytest.raises(client.InvalidAddress):
        stream_url(address)


@pytest.mark.parametrize(
    "address",
    [
        "ws://ann:SECRET@a:port", "ann:SECRET@a b", "ftp://ann:SECRET@a", "ws://ann:SEC/RET@a", "ws://ann:SEC?RET@a",
        "ws://ann:SECRET@", "ws://a:port?token=SECRET@", "ws://a:port?token=SECRET",
    ],
)  # fmt: skip
def test_secrets_in_an_address_are_not_repeated(address: str):
    with pytest.raises(client.InvalidAddress) as caught:
        stream_url(address)
    assert "SEC" not in str(caught.value)


async def test_a_password_is_not_repeated_where_nobody_answers(unused_tcp_port: int):
    with pytest.raises(client.ConnectionRefused) as caught:
        await events(f"ws://ann:SECRET@127.0.0.1:{unused_tcp_port}")
    assert str(caught.value).startswith(f"ws://127.0.0.1:{unused_tcp_port}/v1/stream: no connection")


def test_loopback():
    assert [is_loopback(f"ws://{host}:1/") for host in ("localhost", "127.0.0.2", "[::1]", "10.0.0.1", "a.b")] == [
        True,
        True,
        True,
        False,
        False,
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(["text", "start", "end", "code", "message", "retry_after_s", "audio_seconds", "model"])
type_names = st.sampled_from(
    ["ready", "token", "word", "vad_end", "pauses", "settled", "flushed", "done", "ping", "error", "new"]
)


@given(st.text() | st.binary() | json_values.map(json.dumps))
def test_the_parser_survives_anything(message: str | bytes):
    with suppress(client.ProtocolViolation):
        assert parse(message).type


@given(type_names, st.dictionaries(field_names, json_values))
def test_the_parser_reads_a_known_type_or_says_what_is_wrong(kind: str, fields: dict):
    with suppress(client.ProtocolViolation):
        event = parse(json.dumps({**fields, "type": kind}))
        assert event.type == kind
        assert isinstance(event, client.Unknown) == (kind == "new")


times = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(client.Token, text=st.text())
    | st.builds(client.Word, text=st.text(), start=times, end=times)
    | st.builds(client.Pauses, time=times, probabilities=st.lists(times).map(tuple))
    | st.builds(client.Done, audio_seconds=times)
    | st.builds(client.Ready, session_id=st.text(), model=st.text())
    | st.builds(Failure, code=st.text(), message=st.text(), retry_after_s=st.none() | times)
    | st.builds(Ping)
)
def test_what_a_server_writes_is_read_back(event: client.Event | Failure | Ping):
    assert parse(event.model_dump_json()) == event


def test_deep_nesting_is_no_crash():
    with pytest.raises(client.ProtocolViolation):
        parse("[" * 100_000)
