"""Kafka in tests: librdkafka's own mock cluster (the real protocol over TCP), chunks of clips, what came out.

`tests/kafka` has real brokers instead of the mock cluster.
"""

import ctypes
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import confluent_kafka
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

from serve_app.bridges.messages import AudioChunk, ChunkFormat
from serve_app.bridges.settings import KafkaSettings
from tests.audio_signals import encoded

BEGINNING = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
CHUNK_SECONDS = 1.5

FILES = {"wav": ("wav", "pcm_s16le"), "opus": ("ogg", "libopus"), "mp3": ("mp3", "libmp3lame")}
"""Formats of which each chunk is a file: FFmpeg's names of container and codec."""

ANSWER_SECONDS = 60.0
"""For brokers to answer; not for words."""

Raw = tuple[bytes | None, bytes | None]
"""A message's key and its value."""


@contextmanager
def mock_brokers() -> Iterator[str]:
    """A cluster of one broker in this process; the value is its address. Topics come into being when they are used.

    It keeps no positions that come with transactions, and shows what was aborted: those need real brokers.
    """
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = owner.list_topics(timeout=30).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    del owner


@contextmanager
def refusing_brokers() -> Iterator[tuple[str, Callable[[int], None]]]:
    """A mock cluster as above, and a call that has it refuse the next message with an error code of Kafka's.

    Only librdkafka itself can be told that, not confluent-kafka.
    """
    [file] = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka-*")
    library = ctypes.CDLL(str(file))
    for function in (library.rd_kafka_new, library.rd_kafka_mock_cluster_new):
        function.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    producer, produce = 0, ctypes.c_int16(0)  # as C's headers and the protocol number them
    owner = ctypes.c_void_p(library.rd_kafka_new(producer, None, None, ctypes.c_size_t(0)))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(owner, 1))

    def refuse(code: int) -> None:
        library.rd_kafka_mock_push_request_errors(cluster, produce, ctypes.c_size_t(1), code)

    yield library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), refuse
    library.rd_kafka_mock_cluster_destroy(cluster)
    library.rd_kafka_destroy(owner)


def new_settings(brokers: str, **changes) -> KafkaSettings:
    """Settings with topics and a group that nobody else has."""
    name = uuid.uuid4().hex[:8]
    return KafkaSettings(
        bootstrap_servers=brokers,
        input_topic=f"audio-{name}",
        output_topic=f"words-{name}",
        group_id=f"group-{name}",
        **changes,
    )


def cut(
    samples: np.ndarray,
    device: str,
    seconds: float = CHUNK_SECONDS,
    rate_hz: int = 24_000,
    format: ChunkFormat = "f32",
    beginning: datetime = BEGINNING,
    **changes,
) -> list[AudioChunk]:
    """What a device sends: samples, float32 [n], in chunks that follow one another without a gap, counted from 0."""
    step = round(seconds * rate_hz)
    return [
        AudioChunk.model_construct(
            device_id=device,
            recorded_at=beginning + timedelta(seconds=start / rate_hz),
            audio_data=encode(samples[start : start + step], format, rate_hz),
            sample_rate=rate_hz,
            format=format,
            duration_seconds=len(samples[start : start + step]) / rate_hz,
            chunk_id=f"{device}-{number}",
            sequence_number=number,
        ).model_copy(update=changes)
        for number, start in enumerate(range(0, len(samples), step))
    ]


def encode(samples: np.ndarray, format: ChunkFormat, rate_hz: int) -> bytes:
    """Raw samples, or a file."""
    if format in FILES:
        return encoded(samples, rate_hz, *FILES[format])
    if format == "s16":
        return np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()
    return samples.astype("<f4").tobytes()


def send(settings: KafkaSettings, *messages: AudioChunk | Raw) -> None:
    """Produce chunks under their devices' names, and whatever else."""
    # Idempotent: what is sent again after a failure must not come behind what followed it.
    properties = {"message.max.bytes": 2**27, "enable.idempotence": True}
    producer = Producer(settings.client_properties | properties)
    for message in messages:
        is_chunk = isinstance(message, AudioChunk)
        key, value = (message.device_id.encode(), message.model_dump_json().encode()) if is_chunk else message
        producer.produce(settings.input_topic, value, key)
        producer.poll(0)
    assert producer.flush(ANSWER_SECONDS) == 0


def commit_position(settings: KafkaSettings, position: int, text: str) -> None:
    """Commit a position of every partition, as an earlier bridge did."""
    consumer = Consumer(settings.client_properties | {"group.id": settings.group_id})
    partitions = (
        consumer.list_topics(settings.input_topic, timeout=ANSWER_SECONDS).topics[settings.input_topic].partitions
    )
    places = [TopicPartition(settings.input_topic, number, position, metadata=text) for number in partitions]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()


class Reader:
    """A `read_committed` reader of a whole topic, which comes into being if it is not there."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.messages: list[Message] = []
        self._consumer = Consumer(
            settings.client_properties
            | {
                "group.id": "nobody",  # no group is joined, but the library wants a name
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "allow.auto.create.topics": True,
                "log_level": 0,
            }
        )
        deadline = time.monotonic() + ANSWER_SECONDS
        while not (partitions := self._consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic].partitions):
            assert time.monotonic() < deadline, f"expected a topic {topic}, got none"
            time.sleep(0.1)
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])

    def wait(self, seconds: float = 0.2) -> None:
        """Wait for messages, and read what is there."""
        for message in self._consumer.consume(100, seconds):
            error = message.error()
            if error is None:
                self.messages.append(message)
            elif not (error.retriable() or error.code() < 0):  # else the brokers are away; the library tries again
                raise KafkaException(error)

    def wait_for(self, count: int, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        """Read until there are so many messages; `check` raises if they cannot come any more."""
        deadline = time.monotonic() + seconds
        while len(self.messages) < count:
            check()
            assert time.monotonic() < deadline, f"expected {count} messages, got {len(self.messages)} in {seconds:g} s"
            self.wait()

    def wait_for_chunks(
        self, chunk_ids: Iterable[str], seconds: float, check: Callable[[], None] = lambda: None
    ) -> None:
        """Read until there is a message for each of these chunks; `check` as above."""
        wanted, deadline = set(chunk_ids), time.monotonic() + seconds
        while missing := wanted - set(self.chunk_ids()):
            check()
            assert time.monotonic() < deadline, f"no transcripts of {sorted(missing)} in {seconds:g} s"
            self.wait()

    def wait_quietly(self, seconds: float) -> None:
        """Read whatever else comes in so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.wait(min(left, 0.2))

    def values(self) -> list[dict[str, Any]]:
        """All messages so far, which are JSON."""
        return [json.loads(message.value() or b"null") for message in self.messages]

    def chunk_ids(self) -> list[str]:
        """Of all messages so far."""
        return [value["chunk_id"] for value in self.values()]

    def by_device(self) -> dict[str, list[dict[str, Any]]]:
        """The transcripts of each device, in the order in which they came."""
        found = defaultdict(list)
        for value in self.values():
            found[value["device_id"]].append(value)
        return dict(found)

    def close(self) -> None:
        self._consumer.close()


def words(transcripts: Iterable[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """The words of one device, with their times in seconds since `BEGINNING`."""
    found = []
    for transcript in transcripts:
        origin = (datetime.fromisoformat(transcript["recorded_at"]) - BEGINNING).total_seconds()
        found += [
            (word["word"], origin + word["start_time"], origin + word["end_time"]) for word in transcript["words"]
        ]
    return found
