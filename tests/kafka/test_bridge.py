"""The bridge between a real Kafka and a real service: the words, whatever is killed meanwhile."""

import asyncio
import json
from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import pytest
import soxr

from serve_app import client
from serve_app.bridges.messages import AudioChunk, ChunkFormat
from serve_app.bridges.settings import KafkaSettings
from serve_app.speech import SAMPLE_RATE_HZ
from tests.kafka_support import BEGINNING, CHUNK_SECONDS, Raw, Reader, cut, send, words
from tests.support import Clip, manifest

pytestmark = pytest.mark.timeout(600)

DEVICES = 8
PATIENCE_S = 400.0
"""For all transcripts: somebody has to be missed, started and to catch up, on a machine that has other things to do."""

QUIET_S = 2.0
"""How long a transcript that came twice is waited for."""

CLOSE_S = 0.15
"""By how much a word's times may differ from those over the WebSocket."""

Heard = list[tuple[str, float, float]]


def closed(spoken: list[AudioChunk]) -> list[AudioChunk]:
    """A device's chunks, and one recorded long after them: what was said before it is over."""
    device, silence = spoken[0].device_id, np.zeros(round(CHUNK_SECONDS * SAMPLE_RATE_HZ), np.float32)
    return spoken + cut(
        silence, device, format="wav", beginning=BEGINNING + timedelta(hours=1),
        chunk_id=f"{device}-closing", sequence_number=len(spoken),
    )  # fmt: skip


def said_by(devices: Iterable[str], samples: np.ndarray) -> list[list[AudioChunk]]:
    """What each of them sends who says this, with the chunk that closes it."""
    return [closed(cut(samples, device, format="wav")) for device in devices]


def ids(sent: Iterable[AudioChunk]) -> list[str]:
    """Of all chunks but those that close: whether these have a transcript already does not matter."""
    return [chunk.chunk_id for chunk in sent if not chunk.chunk_id.endswith("-closing")]


def transcripts_of(kafka: KafkaSettings) -> Reader:
    return Reader(kafka, kafka.output_topic)


def over_websocket(url: str, samples: np.ndarray) -> Heard:
    """The words and their times over the service's own protocol."""

    async def listen() -> Heard:
        events = [arrival.event async for arrival in client.transcribe(url, samples, words=True, rtf=0)]
        return [(event.text, event.start, event.end) for event in events if isinstance(event, client.Word)]

    return asyncio.run(listen())


def assert_same(heard: Heard, expected: Heard) -> None:
    assert [word for word, _, _ in heard] == [word for word, _, _ in expected]
    differences = np.abs(np.array([times for _, *times in heard]) - np.array([times for _, *times in expected]))
    assert differences.max() <= CLOSE_S


def assert_one_transcript_each(reader: Reader, sent: Iterable[AudioChunk]) -> None:
    reader.wait_quietly(QUIET_S)
    answered = [chunk_id for chunk_id in reader.chunk_ids() if not chunk_id.endswith("-closing")]
    assert sorted(answered) == sorted(ids(sent))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Two clips in a row: 18 s, 12 chunks."""
    one, two = (Clip(entry).samples for entry in manifest()[:2])
    return np.concatenate((one, two))


@pytest.fixture(scope="module")
def expected(service, samples) -> Heard:
    return over_websocket(service.url, samples)


class Course:
    """Eight devices that say the same, half of it now and half of it later."""

    def __init__(self, kafka: KafkaSettings, samples: np.ndarray) -> None:
        self.reader = transcripts_of(kafka)
        self._kafka = kafka
        said = said_by([f"device-{number}" for number in range(DEVICES)], samples)
        half = len(said[0]) // 2
        # In turns, as devices that speak at the same time.
        self._early = [chunk for one in zip(*(chunks[:half] for chunks in said), strict=True) for chunk in one]
        self._late = [chunk for one in zip(*(chunks[half:] for chunks in said), strict=True) for chunk in one]

    def begin(self, check) -> None:
        """Send the first half, and wait until some of it has been transcribed."""
        send(self._kafka, *self._early)
        self.reader.wait_for(DEVICES, PATIENCE_S, check)

    def go_on(self) -> None:
        """Send the second half."""
        send(self._kafka, *self._late)

    def finish(self, expected: Heard, check) -> None:
        """Every chunk has one transcript, and the words are those over the WebSocket."""
        sent = self._early + self._late
        self.reader.wait_for_chunks(ids(sent), PATIENCE_S, check)
        assert_one_transcript_each(self.reader, sent)
        for transcripts in self.reader.by_device().values():
            assert_same(words(transcripts), expected)


@pytest.fixture
def course(kafka, samples):
    made = Course(kafka, samples)
    yield made
    made.reader.close()


def test_eight_devices_hear_what_a_websocket_hears(kafka, bridge, service):
    """The last words come when nothing has followed for a while; the bridge goes when it is told to."""
    clip = Clip(manifest()[0]).samples
    sent = [chunk for number in range(DEVICES) for chunk in cut(clip, f"device-{number}", format="wav")]
    send(kafka, *sent)
    running = bridge(session_gap_seconds=3.0)
    reader = transcripts_of(kafka)
    reader.wait_for(len(sent), PATIENCE_S, running.check)
    assert_one_transcript_each(reader, sent)
    heard = over_websocket(service.url, clip)
    assert len(heard) == 9
    assert len(reader.by_device()) == DEVICES
    for transcripts in reader.by_device().values():
        assert [transcript["chunk_id"][-2:] for transcript in transcripts] == ["-0", "-1", "-2", "-3", "-4"]
        assert_same(words(transcripts), heard)
    for transcript in reader.values():
        assert transcript["full_text"] == " ".join(word["word"] for word in transcript["words"])
        assert transcript["model_version"]
        assert transcript["processing_time_ms"] > 0
        assert all(0 < word["confidence"] <= 1 for word in transcript["words"])
        assert all(word["end_time"] <= CHUNK_SECONDS + CLOSE_S for word in transcript["words"])
    reader.close()
    assert running.stop() == 0


def test_the_bridge_is_killed(bridge, course, expected):
    first = bridge()
    course.begin(first.check)
    first.kill()
    course.go_on()
    second = bridge()
    course.finish(expected, second.check)


def test_the_service_is_killed(bridge, course, service, expected):
    running = bridge()
    course.begin(running.check)
    service.kill()
    course.go_on()
    service.start()
    course.finish(expected, running.check)


def test_the_broker_is_killed(bridge, course, broker, expected):
    running = bridge()
    course.begin(running.check)
    broker.kill()
    broker.start()
    course.go_on()
    course.finish(expected, running.check)


def test_a_bridge_joins_and_the_one_before_it_is_killed(bridge, course, expected):
    first = bridge()
    course.begin(first.check)
    second = bridge()
    second.wait_for_partitions()
    course.go_on()
    first.kill()
    course.finish(expected, second.check)


MANNERS: list[tuple[ChunkFormat, int]] = [
    ("wav", 16_000), ("wav", 44_100), ("s16", 16_000), ("s16", 48_000), ("f32", 24_000), ("f32", 22_050),
    ("opus", 48_000), ("mp3", 44_100),
]  # fmt: skip


def test_every_format_at_once(kafka, bridge):
    clip = Clip(manifest()[0])
    sent = []
    for format, rate_hz in MANNERS:
        at_rate = clip.samples if rate_hz == SAMPLE_RATE_HZ else soxr.resample(clip.samples, SAMPLE_RATE_HZ, rate_hz)
        sent += closed(cut(at_rate, f"{format}-{rate_hz}", rate_hz=rate_hz, format=format))
    send(kafka, *sent)
    reader = transcripts_of(kafka)
    running = bridge()
    reader.wait_for_chunks(ids(sent), PATIENCE_S, running.check)
    heard = {device: [word for word, *_ in words(found)] for device, found in reader.by_device().items()}
    assert heard == dict.fromkeys(reader.by_device(), clip.words)
    assert len(heard) == len(MANNERS)
    reader.close()


def test_what_nobody_can_hear_is_put_aside(kafka, bridge):
    """Between good chunks of all devices, on every partition."""
    clip = Clip(manifest()[0])
    sent = said_by([f"device-{number}" for number in range(DEVICES)], clip.samples)
    good = json.loads(sent[0][0].model_dump_json())
    poison: list[Raw] = [
        (b"device-0", b"\xff\xfe no JSON"),
        (b"device-0", None),
        (None, b"[]"),
        (b"device-0", b"{}"),
        *(
            (f"device-{number}".encode(), json.dumps({**good, "chunk_id": f"poison-{number}", **wrong}).encode())
            for number, wrong in enumerate(
                [
                    {"audio_data": "no base64!"},
                    {"audio_data": "bm8gYXVkaW8="},
                    {"format": "flac++"},
                    {"format": "s16", "sample_rate": None},
                    {"recorded_at": "yesterday"},
                    {"device_id": ""},
                    {"duration_seconds": 77.0},
                ]
            )
        ),
        (b"device-1", json.dumps({**good, "chunk_id": "x" * 300}).encode()),
    ]
    everything = [chunk for one in sent for chunk in one]
    half = len(everything) // 2
    send(kafka, *everything[:half], *poison, *everything[half:])
    transcripts, letters = transcripts_of(kafka), Reader(kafka, kafka.dead_letter_topic)
    running = bridge()
    transcripts.wait_for_chunks(ids(everything), PATIENCE_S, running.check)
    for found in transcripts.by_device().values():
        assert [word for word, *_ in words(found)] == clip.words
    letters.wait_for(len(poison), PATIENCE_S, running.check)
    letters.wait_quietly(QUIET_S)
    assert {letter.value() for letter in letters.messages} == {value or b"" for _, value in poison}
    assert len(letters.messages) == len(poison)
    assert all(dict(letter.headers())["reason"] for letter in letters.messages)
    transcripts.close()
    letters.close()
