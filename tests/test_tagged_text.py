"""`WS /ws` and `GET /status` from the point of view of the clients of Modal's example."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import soxr
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audio_signals import chord, cut, encoded
from tests.support import Service, answers_until_close, serving


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


def opus(samples: np.ndarray) -> bytes:
    """As a browser's recorder makes it: one packet in each page."""
    return encoded(soxr.resample(samples, 24_000, 48_000), 48_000, "ogg", "libopus", page_duration="20000")


def said(messages: list[bytes]) -> list[str]:
    assert all(message[:1] == b"\x01" for message in messages)
    return b"".join(message[1:] for message in messages).decode().split()


@pytest.mark.parametrize("end", ["EOS", b"EOS"])
async def test_opus_becomes_tagged_text(service, clip, end):
    async with websockets.connect(service.at("/ws")) as connection:
        await connection.send(b"")  # the example passes over empty messages
        for page in cut(opus(clip.samples), 700):
            await connection.send(page)
        await connection.send(end)
        assert said(await answers_until_close(connection)) == clip.words
    assert connection.close_code == 1000
    await service.wait_until_empty()


async def test_a_client_that_hangs_up_hears_everything_that_silence_brings_out(service, clip):
    """The example has no message for the end: its client goes on sending what the microphone hears, then leaves."""
    file = opus(np.concatenate([clip.samples, np.zeros(48_000, np.float32)]))
    heard: list[bytes] = []
    async with websockets.connect(service.at("/ws")) as connection, asyncio.timeout(30):
        for page in cut(file, 700):
            await connection.send(page)
        while said(heard) != clip.words:
            heard.append(await connection.recv())
    await service.wait_until_empty()
    assert service.outcomes("left") == 1


async def test_status_is_200_and_tells_more(service):
    async with httpx.AsyncClient(base_url=service.http) as http:
        status = await http.get("/status")
    assert status.status_code == 200
    assert {"service", "model", "ready", "sessions_open", "engines"} <= set(status.json())


@pytest.mark.parametrize(
    ("messages", "close_code", "reason"),
    [
        (["hello"], 1003, "invalid_message: expected binary Ogg/Opus, got the text 'hello'"),
        ([bytes(100)], 1007, "invalid_audio: expected"),
        ([b"OggS" + bytes(60)], 1007, "invalid_audio: expected"),
        ([opus(chord(24_000)), "EOS", opus(chord(24_000))], 1003, "invalid_message: expected nothing after the end"),
    ],
)
async def test_an_error_is_the_close_frames_code_and_reason(service, messages, close_code, reason):
    async with websockets.connect(service.at("/ws")) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in messages:
                await connection.send(message)
        said(await answers_until_close(connection))  # text alone
    assert connection.close_code == close_code
    assert connection.close_reason.startswith(reason)
    await service.wait_until_empty()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_damaged_pages_end_their_own_session_only_and_no_slot_is_lost(service, data):
    file = bytearray(opus(np.zeros(6_000, np.float32)))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=3)):
        file[place] = data.draw(st.integers(0, 255))
    messages = data.draw(st.permutations(cut(bytes(file), 300))) if data.draw(st.booleans()) else cut(bytes(file), 300)
    async with websockets.connect(service.at("/ws")) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in [*messages, "EOS"]:
                await connection.send(message)
        await answers_until_close(connection)
    assert connection.close_code in (1000, 1003, 1007)
    await service.wait_until_empty()
    assert service.outcomes("internal_error") == 0
