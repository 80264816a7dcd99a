"""Sessions as load tests hold them, in every dialect, against the real ingress."""

import contextlib
from collections.abc import AsyncIterator

import msgpack
import pytest
from websockets.asyncio.server import ServerConnection, serve

from serve_app import client
from serve_app.measuring.dialects import WIRES
from serve_app.measuring.dialects import connect as connect_dialect
from serve_app.measuring.speaking import DIALECTS, STREAM, InvalidManner, Manner, speak
from serve_app.samples import Clip, demo_clip
from tests.conftest import CLIP_SLOTS
from tests.support import Service, serving

RTF = 20.0


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.fixture(scope="module")
def clip() -> Clip:
    return demo_clip()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_dialect_is_measured_and_its_words_checked(service: Service, clip: Clip, dialect: str):
    outcome = await speak(clip, Manner(service.http, dialect, rtf=RTF), flush=True)
    assert outcome.failure is None
    assert (outcome.words, outcome.word_errors, len(outcome.word_delays)) == (9, 0, 9)
    assert outcome.connect_s is not None
    assert (outcome.ready_s is not None) == (dialect in ("stream", "moshi", "realtime"))
    assert (outcome.flush_s is None, outcome.end_s is None) == ((False, True) if dialect == STREAM else (True, False))
    assert outcome.first_token_s is not None
    assert len(outcome.late_s) == -(-len(clip.samples) // 1920)
    assert 0 < outcome.session_s < 60


@pytest.mark.parametrize(
    ("dialect", "format"), [("stream", "s16"), ("stream", "mulaw"), ("stream", "opus"), ("moshi", "opus")]
)
async def test_formats(service: Service, clip: Clip, dialect: str, format: client.Format):
    outcome = await speak(clip, Manner(service.url.removesuffix("/v1/stream"), dialect, format, rtf=RTF))
    assert (outcome.failure, outcome.word_errors) == (None, 0)


async def test_a_session_with_wrong_words_has_failed(service: Service, clip: Clip):
    wrong = Clip(clip.file, clip.samples, (*clip.words[:-1], clip.words[0]))
    assert (await speak(wrong, Manner(service.url, rtf=RTF))).failure == f"wrong words: {clip.file}"
    assert (await speak(wrong, Manner(service.url, rtf=RTF, most_wer=0.2))).failure is None


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_full_service_is_a_failure_with_its_reason(service: Service, clip: Clip, dialect: str):
    async with contextlib.AsyncExitStack() as others:
        for _ in range(CLIP_SLOTS):
            await anext(await others.enter_async_context(client.connect(service.url)))
        outcome = await speak(clip, Manner(service.http, dialect, rtf=RTF))
    assert outcome.failure is not None
    assert outcome.failure.startswith("at_capacity")


async def test_nobody_there(clip: Clip):
    outcome = await speak(clip, Manner("ws://127.0.0.1:9"))
    assert outcome.failure is not None
    assert outcome.failure.startswith("ConnectionRefused: ws://127.0.0.1:9/v1/stream: no connection")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dialect": "morse"}, "dialect: expected one of stream, moshi, realtime, transcribe, ws, got 'morse'"),
        ({"dialect": "ws", "format": "f32"}, "format: expected opus with ws, got 'f32'"),
        ({"rtf": 0.0}, "rtf: expected more than 0, got 0"),
    ],
)
def test_manners_that_cannot_be(arguments: dict, message: str):
    with pytest.raises(InvalidManner, match=message):
        Manner("ws://127.0.0.1", **arguments)


async def test_a_moshi_server_says_why_before_or_when_it_closes():
    async def handle(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb({"type": "Error", "message": "no free channels"}))
        await connection.close(1013, reasons.pop())

    reasons = ["", "too_many_sessions: two are open"]
    async with serve(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for code in ("too_many_sessions", "at_capacity"):
            async with connect_dialect(f"127.0.0.1:{port}", lambda: WIRES["moshi"]("f32", None)) as conversation:
                with pytest.raises(client.ServerError) as raised:
                    await anext(conversation)
            assert raised.value.code == code


async def test_words_that_moshi_server_never_ends_still_count():
    async def handle(connection: ServerConnection) -> None:
        def say(kind: str, **fields: object) -> bytes:
            return msgpack.packb({"type": kind, **fields})

        await connection.send(say("Ready"))
        await connection.recv()
        for message in (
            say("Step", step_idx=0, prs=[], buffered_pcm=0),
            say("Word", text="one", start_time=1.0),
            say("Word", text="two", start_time=2.0),
            say("EndWord", stop_time=2.5),
            say("Word", text="three", start_time=3.0),
            say("Marker", id=1),
        ):
            await connection.send(message)

    async with serve(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect_dialect(f"127.0.0.1:{port}", lambda: WIRES["moshi"]("f32", None)) as conversation:
            await anext(conversation)
            await conversation.end()
            events = [event async for event in conversation]
    words = [(event.text, event.start, event.end) for event in events if isinstance(event, client.Word)]
    assert words == [("one", 1.0, 2.0), ("two", 2.0, 2.5), ("three", 3.0, 3.0)]


@pytest.mark.parametrize("dialect", list(WIRES))
@pytest.mark.parametrize("message", ["", "[1]", b"\xff", b"", "\x01", b"\x93"])
async def test_nonsense_is_a_violation(dialect: str, message: str | bytes):
    async def handle(connection: ServerConnection) -> None:
        await connection.send(message)

    async with serve(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wire = WIRES[dialect]
        async with connect_dialect(f"127.0.0.1:{port}", lambda: wire(wire.formats[0], None)) as conversation:
            with pytest.raises(client.ProtocolViolation, match="expected"):
                await anext(conversation)
