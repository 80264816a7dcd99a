"""`WS /v1/realtime`, spoken by OpenAI's own client over real sockets, and by others that keep no rule."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
import soxr
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection

from serve_app.audio.formats import AudioFormat
from serve_app.protocols.openai.errors import InvalidParameter
from serve_app.protocols.openai.realtime_messages import Append, parse_event, read_fields
from tests.audio_signals import cut, raw
from tests.support import Service, running_engines, serving

PCM16 = AudioFormat("s16")
QUERY = {"intent": "transcription"}
COMPLETED = "conversation.item.input_audio_transcription.completed"
DELTA = "conversation.item.input_audio_transcription.delta"
PAUSE = np.zeros(5 * 24_000, np.float32)


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.fixture
async def client(service) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"127.0.0.1:{service.port}/v1"
    async with openai.AsyncOpenAI(
        api_key="any", base_url=f"http://{base}", websocket_base_url=f"ws://{base}", max_retries=0
    ) as made:
        yield made


async def speak(connection: Any, samples: NDArray[np.float32], audio_format: AudioFormat = PCM16) -> None:
    for piece in cut(raw(samples, audio_format), 24_000):
        await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())


async def until(connection: Any, kind: str) -> list[Any]:
    events = []
    async with asyncio.timeout(30):
        while not events or events[-1].type != kind:
            events.append(await connection.recv())
            assert events[-1].type != "error" or kind == "error", events[-1]
    return events


def kinds(events: list[Any]) -> list[str]:
    return [event.type for event in events if event.type != DELTA]


def manual(**audio_input: object) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": {"turn_detection": None, **audio_input}}}


async def turns(connection: Any, words: list[str]) -> list[list[Any]]:
    """The events of each turn, until so many words have been said."""
    told: list[list[Any]] = []
    while sum(len(turn[-1].transcript.split()) for turn in told) < len(words):
        told.append(await until(connection, COMPLETED))
    assert [word for turn in told for word in turn[-1].transcript.split()] == words
    return told


async def test_the_server_ends_turns(service, client, clip):
    async with client.realtime.connect(extra_query=QUERY) as connection:
        created = await connection.recv()
        assert (created.type, created.session.type) == ("session.created", "transcription")
        assert created.session.audio.input.format.type == "audio/pcm"
        assert created.session.audio.input.turn_detection.type == "server_vad"
        await speak(connection, np.concatenate((clip.samples, PAUSE)))
        told = await turns(connection, clip.words)
    assert len(told) > 1
    times = iter(clip.times)
    previous = None
    for turn in told:
        started, *_, completed = turn
        assert kinds(turn) == [
            "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
            "conversation.item.added", "conversation.item.done", COMPLETED,
        ]  # fmt: skip
        assert "".join(event.delta for event in turn if event.type == DELTA) == completed.transcript
        items = {event.item.id if hasattr(event, "item") else event.item_id for event in turn}
        assert items == {completed.item_id}
        spoken = [next(times) for _ in completed.transcript.split()]
        stopped, _, added = turn[-5:-2]
        assert started.audio_start_ms == pytest.approx(1000 * spoken[0][0], abs=300)
        assert stopped.audio_end_ms > 1000 * spoken[-1][1]
        assert (added.previous_item_id, added.item.role) == (previous, "user")
        assert completed.usage.type == "duration"
        previous = completed.item_id
    everything = [created, *(event for turn in told for event in turn)]
    assert len({event.event_id for event in everything}) == len(everything)
    await service.wait_until_empty()
    assert service.outcomes("left") == 1


async def test_the_client_commits(client, clip):
    async with client.realtime.connect(extra_query=QUERY) as connection:
        await connection.session.update(session=manual(transcription={"model": "gpt-4o-transcribe", "language": "en"}))
        updated = (await until(connection, "session.updated"))[-1]
        assert updated.session.audio.input.turn_detection is None
        assert updated.session.audio.input.transcription.model == "gpt-4o-transcribe"
        for _ in range(2):  # without a word in between: the second one waits for the first one's transcript
            await speak(connection, clip.samples)
            await connection.input_audio_buffer.commit()
        events = await until(connection, COMPLETED) + await until(connection, COMPLETED)
    completed = [event for event in events if event.type == COMPLETED]
    assert [event.transcript.split() for event in completed] == [clip.words] * 2
    committed = [event for event in events if event.type == "input_audio_buffer.committed"]
    assert [event.item_id for event in committed] == [event.item_id for event in completed]
    assert committed[1].previous_item_id == committed[0].item_id
    assert {event.usage.seconds for event in completed} == {round(len(clip.samples) / 24_000, 3)}
    for each in completed:
        deltas = [event.delta for event in events if event.type == DELTA and event.item_id == each.item_id]
        assert "".join(deltas) == each.transcript


async def test_what_is_cleared_is_never_told(client, clip):
    async with client.realtime.connect(extra_query=QUERY) as connection:
        await connection.session.update(session=manual())
        await until(connection, "session.updated")
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await speak(connection, clip.samples[: len(clip.samples) // 2])
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await speak(connection, clip.samples)
        await connection.input_audio_buffer.commit()
        events = await until(connection, COMPLETED)
    assert events[-1].transcript.split() == clip.words
    assert {event.item_id for event in events if event.type == DELTA} == {events[-1].item_id}


@pytest.mark.parametrize(
    ("declared", "audio_format"),
    [
        ({"type": "audio/pcmu"}, AudioFormat("mulaw", 8_000)),
        ({"type": "audio/pcma"}, AudioFormat("alaw", 8_000)),
        ({"type": "audio/pcm", "rate": 16_000}, AudioFormat("s16", 16_000)),
    ],
)
async def test_other_formats(client, clip, declared, audio_format):
    async with client.realtime.connect(extra_query=QUERY) as connection:
        await connection.session.update(session=manual(format=declared))
        updated = (await until(connection, "session.updated"))[-1]
        assert updated.session.audio.input.format.type == declared["type"]
        samples = soxr.resample(clip.samples, 24_000, audio_format.sample_rate_hz)
        await speak(connection, samples, audio_format)
        await connection.input_audio_buffer.commit()
        heard = (await until(connection, COMPLETED))[-1].transcript.split()
    wrong = sum(one != other for one, other in zip(heard, clip.words, strict=True))
    assert wrong <= (audio_format.sample_rate_hz == 8_000)  # a telephone carries half of what makes an s


async def test_the_beta(client, clip):
    async with client.beta.realtime.connect(model="gpt-4o-realtime-preview", extra_query=QUERY) as connection:
        created = json.loads(await connection.recv_bytes())
        assert created["type"] == "transcription_session.created"
        assert created["session"]["input_audio_format"] == "pcm16"
        await connection.transcription_session.update(
            session={"input_audio_format": "pcm16", "turn_detection": {"type": "server_vad", "threshold": 0.5},
                     "input_audio_transcription": {"model": "whisper-1", "prompt": "Hm."}}
        )  # fmt: skip
        updated = json.loads(await connection.recv_bytes())
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["input_audio_transcription"]["model"] == "whisper-1"
        await speak(connection, np.concatenate((clip.samples, PAUSE)))
        for turn in await turns(connection, clip.words):
            assert "conversation.item.created" in kinds(turn)


async def test_browsers_agree_on_a_protocol(service):
    protocols = ["realtime", "openai-beta.realtime-v1"]
    async with websockets.connect(f"ws://127.0.0.1:{service.port}/v1/realtime", subprotocols=protocols) as connection:
        assert connection.subprotocol == "realtime"
        assert json.loads(await connection.recv())["type"] == "transcription_session.created"


# ---------------------------------------------------------------------- mistakes


def event(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, "event_id": "mine", **fields})


def append(data: bytes) -> str:
    return event("input_audio_buffer.append", audio=base64.b64encode(data).decode())


MISTAKES = [
    ("{", None, "invalid_json"),
    ("[]", None, "invalid_json"),
    ("[" * 100_000, None, "invalid_json"),
    (b"\0\0", None, "invalid_json"),
    ("{}", "type", "invalid_value"),
    (event("response.create"), "type", "invalid_value"),
    ('{"type": ["session.update"]}', "type", "invalid_value"),
    (event("input_audio_buffer.append"), "audio", "missing_required_parameter"),
    (event("input_audio_buffer.append", audio=[1]), "audio", "invalid_value"),
    (event("input_audio_buffer.append", audio="no base64!"), "audio", "invalid_value"),
    (event("input_audio_buffer.append", audio="é"), "audio", "invalid_value"),
    (event("input_audio_buffer.commit"), None, "input_audio_buffer_commit_empty"),
    (event("session.update"), "session", "missing_required_parameter"),
    (event("session.update", session={"type": "realtime"}), "session.type", "invalid_value"),
    (event("session.update", session=manual(format={"type": "audio/ogg"})), "session.audio.input.format.type",
     "invalid_value"),
    (event("session.update", session=manual(format={"type": "audio/pcm", "rate": 12_345})),
     "session.audio.input.format.rate", "invalid_value"),
    (event("session.update", session=manual(transcription={"model": "tiny"})), "model", "model_not_found"),
    (event("transcription_session.update", session={"input_audio_format": "mp3"}), "session.input_audio_format",
     "invalid_value"),
]  # fmt: skip


async def test_mistakes_are_told_and_the_session_goes_on(service, clip):
    async with websockets.connect(f"ws://127.0.0.1:{service.port}/v1/realtime?intent=transcription") as connection:
        assert json.loads(await connection.recv())["type"] == "session.created"
        for mistake, param, code in MISTAKES:
            await connection.send(mistake)
            told = json.loads(await connection.recv())
            error = told["error"]
            assert (told["type"], error["param"], error["code"]) == ("error", param, code), (mistake[:80], error)
            assert error["event_id"] == ("mine" if '"mine"' in str(mistake) else None)
            assert error["type"] == "invalid_request_error"
            assert len(error["message"]) < 500
        await connection.send(append(b"\0" * 10_001))
        await connection.send(event("input_audio_buffer.commit"))
        error = json.loads(await connection.recv())["error"]
        assert (error["code"], error["param"]) == ("invalid_audio", "audio")
        for piece in cut(raw(np.concatenate((clip.samples, PAUSE)), PCM16), 24_000):
            await connection.send(append(piece))
        words: list[str] = []
        while words != clip.words:
            told = json.loads(await connection.recv())
            assert told["type"] != "error"
            words += told["transcript"].split() if told["type"] == COMPLETED else []
    await service.wait_until_empty()


async def events_until_close(connection: ClientConnection) -> list[dict[str, Any]]:
    events = []
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            async with asyncio.timeout(30):
                events.append(json.loads(await connection.recv()))
    return events


@pytest.mark.parametrize(
    ("query", "messages", "code", "close_code"),
    [
        ("intent=conversation", [], "invalid_value", 1003),
        ("model=tiny", [], "model_not_found", 1003),
        ("intent=transcription", ["x" * 2_000], "message_too_large", 1009),
    ],
)
async def test_what_cannot_go_on_ends_with_an_error_and_a_close(engines, query, messages, code, close_code):
    async with (
        serving(engines, ingress={"max_message_bytes": 1_024}) as service,
        websockets.connect(f"ws://127.0.0.1:{service.port}/v1/realtime?{query}") as connection,
    ):
        for message in messages:
            await connection.send(message)
        *_, last = await events_until_close(connection)
        assert (last["type"], last["error"]["code"], connection.close_code) == ("error", code, close_code)
        await service.wait_until_empty()


async def test_at_capacity(service, client):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            connection = await stack.enter_async_context(websockets.connect(service.url))
            await connection.recv()
        async with client.realtime.connect(extra_query=QUERY) as refused:
            told = await refused.recv()
            assert (told.type, told.error.code, told.error.type) == ("error", "at_capacity", "server_error")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await refused.recv()
            assert closed.value.rcvd.code == 1013


# ---------------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
KINDS = st.sampled_from(
    ["session.update", "transcription_session.update", "input_audio_buffer.append", "input_audio_buffer.commit",
     "input_audio_buffer.clear", "response.create"]
)  # fmt: skip
FIELDS = st.sampled_from(
    ["type", "event_id", "session", "audio", "input", "format", "rate", "transcription", "model", "turn_detection",
     "input_audio_format", "input_audio_transcription"]
)  # fmt: skip
VALUES = st.recursive(
    JSON | st.sampled_from(["transcription", "audio/pcm", "audio/pcmu", "pcm16", "server_vad", "demo", "AAAA", 8_000]),
    lambda inner: st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=10,
)
EVENTS = st.fixed_dictionaries({"type": KINDS}, optional={"audio": VALUES, "session": VALUES, "event_id": VALUES})
AUDIO = st.binary(max_size=10_000).map(append)
MESSAGES = st.one_of(st.text(max_size=50), st.binary(max_size=50), JSON.map(json.dumps), EVENTS.map(json.dumps), AUDIO)


@given(MESSAGES)
@settings(max_examples=300)
def test_the_parser_takes_anything(message):
    try:
        parsed = parse_event(read_fields(message))
        data = parsed.data if isinstance(parsed, Append) else b""
    except InvalidParameter as error:
        complaint = error
    else:
        assert isinstance(data, bytes)
        return
    assert complaint.code in ("invalid_json", "invalid_value", "missing_required_parameter")
    assert len(complaint.message) < 500


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def fuzzed(runner, demo_model) -> Iterator[Callable[[list[str | bytes]], list[dict[str, Any]]]]:
    """Has a session of its own take messages, then leave; every slot is free again afterwards."""
    stack = contextlib.AsyncExitStack()

    async def start() -> Service:
        engines = await stack.enter_async_context(running_engines(demo_model))
        return await stack.enter_async_context(serving(engines))

    service = runner.run(start())

    async def session(messages: list[str | bytes]) -> list[dict[str, Any]]:
        told = []
        with contextlib.suppress(websockets.ConnectionClosed):
            async with websockets.connect(f"ws://127.0.0.1:{service.port}/v1/realtime") as connection:
                for message in messages:
                    await connection.send(message)
                await connection.send(event("a last one"))
                async with asyncio.timeout(20):
                    while not told or "a last one" not in told[-1].get("error", {}).get("message", ""):
                        told.append(json.loads(await connection.recv()))
        await service.wait_until_empty()
        return told

    yield lambda messages: runner.run(session(messages))
    runner.run(stack.aclose())


@given(st.lists(MESSAGES, max_size=12))
@settings(max_examples=40)
def test_no_sequence_of_messages_is_our_fault_or_leaves_a_slot_taken(fuzzed, messages):
    told = fuzzed(messages)
    assert told[0]["type"] == "session.created"
    assert {each["error"]["type"] for each in told if each["type"] == "error"} == {"invalid_request_error"}
    committed = [each["item_id"] for each in told if each["type"] == "input_audio_buffer.committed"]
    completed = [each["item_id"] for each in told if each["type"] == COMPLETED]
    assert completed == committed[: len(completed)]
