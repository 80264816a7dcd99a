"""Kafka in tests: librdkafka's own mock cluster (the real protocol over TCP), chunks of clips, what came out."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
from confluent_kafka import Consumer, Producer

from serve_app.bridges.messages import AudioChunk, ChunkFormat
from serve_app.bridges.settings import KafkaSettings

BEGINNING = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


@contextmanager
def mock_brokers() -> Iterator[str]:
    """A cluster of one broker in this process; the value is its address. Topics come into being when they are used.

    It keeps no positions that come with transactions, and shows what was aborted: those need real brokers.
    """
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = owner.list_topics(timeout=30).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    del owner


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


def cut(samples: np.ndarray, device: str, seconds: float = 1.5, rate_hz: int = 24_000, **changes) -> list[AudioChunk]:
    """The samples, float32 [n], as chunks of so many seconds, in float32 unless `format` says s16."""
    step, encoding = round(seconds * rate_hz), changes.pop("format", "f32")
    return [
        AudioChunk.model_construct(
            device_id=device,
            recorded_at=BEGINNING + timedelta(seconds=start / rate_hz),
            audio_data=encode(samples[start : start + step], encoding),
            sample_rate=rate_hz,
            format=encoding,
            duration_seconds=len(samples[start : start + step]) / rate_hz,
            chunk_id=f"{device}-{number}",
            sequence_number=number,
        ).model_copy(update=changes)
        for number, start in enumerate(range(0, len(samples), step))
    ]


def encode(samples: np.ndarray, encoding: ChunkFormat) -> bytes:
    """Raw samples."""
    if encoding == "s16":
        return np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()
    return samples.astype("<f4").tobytes()


def send(settings: KafkaSettings, *chunks: AudioChunk | bytes, key: str = "stranger") -> None:
    """Produce chunks, and bytes that are none."""
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "message.max.bytes": 2**27})
    for chunk in chunks:
        value = chunk if isinstance(chunk, bytes) else chunk.model_dump_json().encode()
        producer.produce(settings.input_topic, value, key if isinstance(chunk, bytes) else chunk.device_id)
        producer.poll(0)
    assert producer.flush(60) == 0


class Reader:
    """Reads a topic from its beginning, as a `read_committed` consumer does."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "topic.metadata.refresh.interval.ms": 500,
                "allow.auto.create.topics": True,
                "log_level": 0,
            }
        )
        self._consumer.subscribe([topic])
        self.messages: list = []

    def wait(self) -> None:
        """Wait a moment for messages."""
        self.messages += [message for message in self._consumer.consume(100, 0.2) if message.error() is None]

    def read(self) -> list[dict]:
        """Wait a moment; all messages so far, as JSON."""
        self.wait()
        return [json.loads(message.value()) for message in self.messages]

    def close(self) -> None:
        self._consumer.close()
