"""The bridge between mock brokers and a real service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serve_app import client
from serve_app.bridges.bridge import Bridge
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.settings import KafkaSettings
from serve_app.telemetry.bridge_metrics import BridgeMetrics
from tests.kafka_support import BEGINNING, Reader, cut, mock_brokers, new_settings, send, words
from tests.support import Service, serving

PATIENCE_SECONDS = 90


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_brokers() as address:
        yield address


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines, ingress={"key_share": 1.0}) as running:
        yield running


@asynccontextmanager
async def bridged(settings: KafkaSettings, url: str) -> AsyncIterator[BridgeMetrics]:
    """A running bridge."""
    metrics = BridgeMetrics(CollectorRegistry())
    bridge = Bridge(settings, url, None, metrics)
    running = asyncio.create_task(bridge.run())
    try:
        yield metrics
    finally:
        bridge.stop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running


async def read(settings: KafkaSettings, count: int, topic: str = "") -> list[dict]:
    """The first so many transcripts, or messages of another topic."""
    reader = Reader(settings, topic or settings.output_topic)
    try:
        await asyncio.to_thread(reader.wait_for, count, PATIENCE_SECONDS)
        reader.wait()
        return reader.values()
    finally:
        reader.close()


async def websocket_words(service: Service, samples: np.ndarray) -> list[client.Word]:
    arrivals = client.transcribe(service.url, samples, rtf=0, words=True)
    return [arrival.event async for arrival in arrivals if isinstance(arrival.event, client.Word)]


async def test_devices_in_chunks_say_what_a_websocket_says(brokers, service, clip):
    """Though the first two chunks have changed places."""
    expected = await websocket_words(service, clip.samples)
    settings = new_settings(brokers, session_gap_seconds=8.0)
    devices = [f"device-{number}" for number in range(3)]
    chunks = [cut(clip.samples, device) for device in devices]
    swapped = [[spoken[1], spoken[0], *spoken[2:]] for spoken in chunks]
    send(settings, *(chunk for together in zip(*swapped, strict=True) for chunk in together))
    async with bridged(settings, service.url):
        transcripts = await read(settings, sum(map(len, chunks)))
    assert len(transcripts) == sum(map(len, chunks))
    for device, sent in zip(devices, chunks, strict=True):
        answers = [transcript for transcript in transcripts if transcript["device_id"] == device]
        assert [answer["chunk_id"] for answer in answers] == [chunk.chunk_id for chunk in sent]
        heard = words(answers)
        assert [text for text, _, _ in heard] == [word.text for word in expected]
        for (_, start, end), word in zip(heard, expected, strict=True):
            assert start == pytest.approx(word.start, abs=0.002)
            assert end == pytest.approx(word.end, abs=0.002)
    first = next(answer for answer in transcripts if answer["words"])
    assert set(first) == {
        "device_id", "recorded_at", "chunk_id", "words", "full_text", "language", "processing_time_ms", "model_version"
    }  # fmt: skip
    assert first["full_text"] == " ".join(word["word"] for word in first["words"])
    assert first["model_version"] == "demo"
    assert all(0.5 < word["confidence"] <= 1 for word in first["words"])
    assert first["words"][0]["start_at"].startswith(BEGINNING.strftime("%Y-%m-%dT%H:%M"))


async def test_what_cannot_be_used_becomes_a_dead_letter_and_the_rest_goes_on(brokers, service, clip):
    settings = new_settings(brokers, session_gap_seconds=1.0, max_message_bytes=2**20, dead_letter_bytes=1000)
    samples = clip.samples[: 3 * 24_000]
    good, expected = cut(samples, "good"), await websocket_words(service, samples)
    lying = good[0].model_copy(update={"device_id": "liar", "chunk_id": "liar", "sample_rate": 48_000})
    noise = np.full(24_000, np.nan, np.float32)
    poison = {
        b"this is no JSON": "Invalid JSON",
        b"[1, 2]": "Input should be an object",
        b'{"device_id": "x"}': "recorded_at: Field required",
        good[0].model_dump_json().replace('"audio_data":"', '"audio_data":"*').encode(): "expected base64",
        lying.model_dump_json().encode(): "is the sample rate right?",
        cut(noise, "nan")[0].model_dump_json().encode(): "expected finite float32 samples",
        b" " * (2**20 + 1): "expected at most 1048576 bytes",
    }
    empty = good[0].model_copy(update={"device_id": "empty", "audio_data": b"", "duration_seconds": 0.0})
    send(settings, good[0], *((b"good", value) for value in poison), empty, good[1], good[0])
    async with bridged(settings, service.url) as metrics:
        letters = Reader(settings, settings.dead_letter_topic)
        try:
            transcripts = await read(settings, 3)
            await asyncio.to_thread(letters.wait_for, len(poison), PATIENCE_SECONDS)
        finally:
            letters.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while metrics.lag._value.get() or metrics.pending._value.get():
                await asyncio.sleep(0.1)
    assert sorted(transcript["chunk_id"] for transcript in transcripts) == ["good-0", "good-0", "good-1"]
    assert [transcript["words"] for transcript in transcripts if transcript["device_id"] == "empty"] == [[]]
    heard = sorted((t for t in transcripts if t["device_id"] == "good"), key=lambda t: t["chunk_id"])
    said = [word["word"] for transcript in heard for word in transcript["words"]]
    assert said == [word.text for word in expected]
    for letter in letters.messages:
        headers = {name: value.decode() for name, value in letter.headers()}
        value = next(value for value in poison if value[:1000] == letter.value())
        assert poison[value] in headers["reason"]
        assert headers["source_topic"] == settings.input_topic
        assert int(headers["original_bytes"]) == len(value)
    assert metrics.duplicates_total._value.get() == 1
    assert metrics.dead_letters_total._value.get() == len(poison)


async def test_what_is_too_large_for_the_brokers_is_put_aside_once_and_the_rest_goes_on(brokers, service):
    """A transcript; and a dead letter of which not even the key can be sent."""
    settings = new_settings(
        brokers, session_gap_seconds=1.0, language="x" * 600, librdkafka={"message.max.bytes": 1_000}
    )
    chunks = [
        AudioChunk(device_id=device, recorded_at=BEGINNING, audio_data=b"", chunk_id=device)
        for device in ("a", "l" * 250, "z")
    ]
    send(settings, (b"k" * 2_000, b"this is no JSON"), *chunks)
    async with bridged(settings, service.url) as metrics:
        letters = Reader(settings, settings.dead_letter_topic)
        try:
            transcripts = await read(settings, 2)
            await asyncio.to_thread(letters.wait_for, 1, PATIENCE_SECONDS)
        finally:
            letters.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while metrics.lag._value.get() or metrics.pending._value.get():
                await asyncio.sleep(0.1)
    assert sorted(transcript["chunk_id"] for transcript in transcripts) == ["a", "z"]
    [letter] = letters.messages
    assert letter.value().startswith(b'{"device_id":"lll')
    reason = dict(letter.headers())["reason"].decode()
    assert reason.startswith(
        "transcript: expected at most 1000 bytes in all (kafka.librdkafka: message.max.bytes), got "
    )
    assert metrics.dead_letters_total._value.get() == 2


async def test_a_session_goes_on_in_another_one_when_the_service_loses_it(brokers, engines, clip):
    settings = new_settings(brokers, session_gap_seconds=8.0)
    chunks = cut(clip.samples, "phone")
    async with serving(engines, session={"max_session_seconds": 4.0}, ingress={"key_share": 1.0}) as service:
        async with bridged(settings, service.url):
            for chunk in chunks:
                send(settings, chunk)
                await asyncio.sleep(1.5)
            transcripts = await read(settings, len(chunks))
        assert service.outcomes("session_too_long") >= 1
    assert [transcript["chunk_id"] for transcript in transcripts] == [chunk.chunk_id for chunk in chunks]
    assert [word["word"] for transcript in transcripts for word in transcript["words"]] == clip.words


async def test_a_flood_and_fewer_sessions_than_devices_lose_no_word(brokers, service, clip):
    """The partition is paused and read again, and one device waits for the other."""
    settings = new_settings(brokers, session_gap_seconds=8.0, max_pending_chunks=50, max_sessions=1)
    chunks = [cut(clip.samples, device, seconds=0.1) for device in ("one", "two")]
    send(settings, *chunks[0], *chunks[1])
    async with bridged(settings, service.url) as metrics:
        transcripts = await read(settings, sum(map(len, chunks)))
        assert metrics.sessions._value.get() <= 1
    for sent in chunks:
        answers = [answer for answer in transcripts if answer["device_id"] == sent[0].device_id]
        assert [answer["chunk_id"] for answer in answers] == [chunk.chunk_id for chunk in sent]
        assert [word["word"] for answer in answers for word in answer["words"]] == clip.words


async def test_a_bridge_without_work_notices_that_the_brokers_have_gone(service):
    with ExitStack() as there:
        settings = new_settings(there.enter_context(mock_brokers()))
        send(settings, (None, b"no chunk"))
        async with bridged(settings, service.url) as metrics, asyncio.timeout(PATIENCE_SECONDS):
            while not (metrics.connected._value.get() and metrics.dead_letters_total._value.get()):
                await asyncio.sleep(0.1)
            there.close()
            while metrics.connected._value.get():
                await asyncio.sleep(0.1)
