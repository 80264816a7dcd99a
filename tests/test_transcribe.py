"""`WS /v1/transcribe` from a client's point of view: 16-bit PCM in, segments out."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import soxr
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection

from serve_app.audio.formats import AudioFormat
from tests.audio_signals import chord, cut, encoded, raw
from tests.support import Service, answers_until_close, serving

CHUNK_BYTES = 23_040
"""480 ms, as the clients of this dialect send it."""

COMPLETE = {"status": "complete"}


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def answers(connection: ClientConnection) -> list[dict]:
    return [json.loads(message) for message in await answers_until_close(connection)]


def said(messages: list[dict]) -> list[str]:
    return "".join(message.get("text", "") for message in messages).split()


@pytest.mark.parametrize(("chunk_bytes", "end"), [(CHUNK_BYTES, b"EOS"), (999, "EOS"), (1_000_000, b"EOS")])
async def test_a_clip_comes_back_in_segments_of_whole_words(service, clip, chunk_bytes, end):
    async with websockets.connect(service.at("/v1/transcribe")) as connection:
        for chunk in cut(raw(clip.samples, AudioFormat("s16")), chunk_bytes):
            await connection.send(chunk)
        await connection.send(end)
        *segments, final, complete = await answers(connection)
    assert said([*segments, final]) == clip.words
    assert all(segment["final"] is False and segment["text"].strip() for segment in segments)
    assert len(segments) > 3
    assert (final["final"], complete) == (True, COMPLETE)
    assert connection.close_code == 1000
    await service.wait_until_empty()


async def test_segments_come_while_the_client_still_speaks(service, clip):
    async with websockets.connect(service.at("/v1/transcribe")) as connection:
        await connection.send(raw(clip.samples, AudioFormat("s16")))
        assert json.loads(await connection.recv()) == {"text": f" {clip.words[0]}", "final": False}


async def test_other_audio_where_it_is_declared_and_opus_where_it_is_not(service, clip):
    telephone = AudioFormat("s16", 16_000)
    opus = encoded(soxr.resample(clip.samples, 24_000, 48_000), 48_000, "ogg", "libopus", page_duration="80000")
    declared = raw(soxr.resample(clip.samples, 24_000, 16_000), telephone)
    for query, data in ((telephone.query, declared), ("", opus)):
        async with websockets.connect(service.at("/v1/transcribe") + query) as connection:
            for chunk in cut(data, 4_000):
                await connection.send(chunk)
            await connection.send(b"EOS")
            assert said(await answers(connection)) == clip.words


async def test_nothing_said_is_an_empty_final_segment(service):
    async with websockets.connect(service.at("/v1/transcribe")) as connection:
        await connection.send(bytes(48_000))
        await connection.send(b"EOS")
        assert await answers(connection) == [{"text": "", "final": True}, COMPLETE]


@pytest.mark.parametrize(
    ("query", "messages", "code", "close_code", "complaint"),
    [
        ("", ["hello"], "invalid_message", 1003, "expected binary audio or EOS, got the text 'hello'"),
        ("", [bytes(3), "EOS"], "invalid_audio", 1007, "a multiple of 2 bytes, got 1 trailing"),
        ("", [bytes(48_000), "EOS", bytes(2)], "invalid_message", 1003, "nothing after the end of the audio"),
        ("?format=mp3", [], "invalid_message", 1003, "?format=: expected one of"),
        ("?format=opus", [b"OggS" + bytes(60)], "invalid_audio", 1007, "Ogg"),
        ("", [raw(chord(24_000), AudioFormat("f32"))], "invalid_audio", 1007, "float32"),
    ],
)  # fmt: skip
async def test_bad_input_gets_an_error_and_ends_the_session(service, query, messages, code, close_code, complaint):
    async with websockets.connect(service.at("/v1/transcribe") + query) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in messages:
                await connection.send(message)
        error = (await answers(connection))[-1]
    assert (error["status"], error["code"]) == ("error", code)
    assert complaint in error["message"]
    assert connection.close_code == close_code
    await service.wait_until_empty()


async def test_what_was_said_before_a_mistake_is_told_before_the_error(service, clip):
    async with websockets.connect(service.at("/v1/transcribe")) as connection:
        await connection.send(raw(clip.samples, AudioFormat("s16")))
        await connection.send("hello")
        messages = await answers(connection)
    assert said(messages) == clip.words
    assert messages[-1]["status"] == "error"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=100), st.just("EOS")), max_size=5))
async def test_whatever_comes_is_answered_and_no_slot_is_lost(service, messages):
    async with websockets.connect(service.at("/v1/transcribe")) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in [*messages, "EOS"]:
                await connection.send(message)
        last = (await answers(connection))[-1]
    assert last == COMPLETE or last["code"] in ("invalid_message", "invalid_audio")
    await service.wait_until_empty()
    assert service.outcomes("internal_error") == 0
