"""What tests put into Kafka and take out of it, in plain JSON: the schemas of the messages are what is tested."""

import base64
import io
import json
import time
import uuid
import wave
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from numpy.typing import NDArray

from serve_app.speech import SAMPLE_RATE_HZ

CHUNK_SECONDS = 1.5
PARTITIONS = 4
PATIENCE_S = 60.0
"""For the broker to answer; not for words."""

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)

Encode = Callable[[NDArray[np.float32]], bytes]


def wav(samples: NDArray[np.float32], rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """A 16-bit WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(rate_hz)
        output.writeframes(np.clip(np.round(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes())
    return file.getvalue()


def chunks(
    device: str,
    samples: NDArray[np.float32],
    *,
    rate_hz: int = SAMPLE_RATE_HZ,
    format: str = "wav",
    encode: Encode | None = None,
    beginning: datetime = BEGINNING,
) -> list[dict[str, Any]]:
    """What a device sends: samples at `rate_hz`, cut into chunks that follow one another without a gap."""
    encode = encode or (lambda piece: wav(piece, rate_hz))
    step = round(CHUNK_SECONDS * rate_hz)
    return [
        {
            "device_id": device,
            "recorded_at": (beginning + timedelta(seconds=start / rate_hz)).isoformat().replace("+00:00", "Z"),
            "audio_data": base64.b64encode(encode(samples[start : start + step])).decode(),
            "sample_rate": rate_hz,
            "format": format,
            "duration_seconds": len(samples[start : start + step]) / rate_hz,
            "chunk_id": f"{device}-{number}",
            "sequence_number": number,
        }
        for number, start in enumerate(range(0, len(samples), step), 1)
    ]


@dataclass
class Topics:
    """An input topic and what comes of it, of one test."""

    address: str
    name: str = field(default_factory=lambda: f"audio-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        """Make the topics."""
        admin = AdminClient({"bootstrap.servers": self.address})  # which must outlive its answers
        made = admin.create_topics(
            [NewTopic(topic, PARTITIONS, 1) for topic in (self.name, self.output, self.dead_letter)]
        )
        for future in made.values():
            future.result(PATIENCE_S)
        # Idempotent: what is sent again after a failure must not come behind what followed it.
        self._producer = Producer({"bootstrap.servers": self.address, "enable.idempotence": True})

    @property
    def output(self) -> str:
        return f"{self.name}.words"

    @property
    def dead_letter(self) -> str:
        return f"{self.name}.dead-letter"

    def send(self, messages: Iterable[dict[str, Any]]) -> None:
        """Send chunks, each with its device as the key."""
        self.send_raw((message["device_id"].encode(), json.dumps(message).encode()) for message in messages)

    def send_raw(self, messages: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Send keys and values as they are."""
        for key, value in messages:
            self._producer.produce(self.name, value, key)
            self._producer.poll(0)
        assert self._producer.flush(PATIENCE_S) == 0

    def transcripts(self) -> "Reader":
        """What comes out, from the beginning."""
        return Reader(self.address, self.output)

    def dead_letters(self) -> "Reader":
        """What was refused, from the beginning."""
        return Reader(self.address, self.dead_letter)


class Reader:
    """A `read_committed` reader of a whole topic."""

    def __init__(self, address: str, topic: str) -> None:
        self.messages: list[Message] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": "nobody",  # no group is joined, but the library wants a name
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])

    def wait_for(self, count: int, seconds: float, alive: Callable[[], None] = lambda: None) -> None:
        """Read until there are so many messages; `alive` raises if they cannot come any more."""
        deadline = time.monotonic() + seconds
        while len(self.messages) < count:
            alive()
            assert time.monotonic() < deadline, f"expected {count} messages, got {self.chunk_ids()} in {seconds:g} s"
            self._take(0.2)

    def wait_for_chunks(
        self, chunk_ids: Iterable[str], seconds: float, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Read until there is a message for each of these chunks; `alive` as above."""
        wanted, deadline = set(chunk_ids), time.monotonic() + seconds
        while missing := wanted - set(self.chunk_ids()):
            alive()
            assert time.monotonic() < deadline, f"no transcripts of {sorted(missing)} in {seconds:g} s"
            self._take(0.2)

    def wait_quietly(self, seconds: float) -> None:
        """Read whatever else comes in so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._take(left)

    def values(self) -> list[dict[str, Any]]:
        """All messages so far, in JSON."""
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

    def _take(self, seconds: float) -> None:
        message = self._consumer.poll(seconds)
        if message is None:
            return
        if error := message.error():
            if error.retriable() or error.code() < 0:  # the broker is away; the library tries again
                return
            raise KafkaException(error)
        self.messages.append(message)


def words(transcripts: Iterable[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """The words of one device, with their times in seconds since `BEGINNING`."""
    found = []
    for transcript in transcripts:
        origin = (datetime.fromisoformat(transcript["recorded_at"]) - BEGINNING).total_seconds()
        found += [
            (word["word"], origin + word["start_time"], origin + word["end_time"]) for word in transcript["words"]
        ]
    return found
