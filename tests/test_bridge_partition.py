"""What a partition writes, and when."""

import json
from datetime import timedelta

import pytest
from confluent_kafka import Message
from prometheus_client import CollectorRegistry

from serve_app.bridges import partition as module
from serve_app.bridges.ledger import Ledger
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.partition import MOST_KEY_BYTES, Partition, dead_letter, read_message
from serve_app.bridges.transcriber import Transcriber
from serve_app.telemetry.bridge_metrics import BridgeMetrics
from tests.kafka_support import BEGINNING, new_settings

SETTINGS = new_settings("x", dead_letter_bytes=10, reorder_seconds=2.0)


class Clock:
    """Takes the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def silent(number: int, offset: int | None = None) -> Message:
    """The `number`th chunk of a device, without samples: it is answered as soon as it is its turn."""
    offset = number if offset is None else offset
    chunk = AudioChunk(
        device_id="d",
        recorded_at=BEGINNING + timedelta(seconds=number),
        audio_data=b"",
        chunk_id=f"d-{offset}",
        sequence_number=number,
    )
    return Message(topic="audio", partition=0, offset=offset, value=chunk.model_dump_json().encode())


@pytest.mark.parametrize(
    ("turns_s", "written"),
    [([60.0], ["d-1", "d-2", "d-3"]), ([0.1] * 30, ["d-1", "d-3", "sequence_number: expected 4, got 2: too late"])],
)
async def test_what_the_bridge_does_instead_of_listening_counts_as_nobodys_silence(turns_s, written, monkeypatch):
    """The second chunk comes while the bridge is stuck in one turn, or does not come in many."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    transcriber = Transcriber("ws://127.0.0.1:1/v1/stream", None, 1)
    partition = Partition(Ledger(), SETTINGS, transcriber, BridgeMetrics(CollectorRegistry()))
    try:
        for number in (1, 3):
            partition.take(silent(number), read_message(silent(number), SETTINGS))
            partition.tick()
        for turn_s in turns_s:
            clock.now += turn_s
            partition.tick()
        partition.take(silent(2), read_message(silent(2), SETTINGS))
        told = [
            dict(record.headers)["reason"].decode() if record.headers else json.loads(record.value)["chunk_id"]
            for record in partition.ready
        ]
    finally:
        await partition.close()
    assert told == written


async def test_a_chunk_with_the_number_of_one_that_is_held_back_is_not_called_late():
    transcriber = Transcriber("ws://127.0.0.1:1/v1/stream", None, 1)
    partition = Partition(Ledger(), SETTINGS, transcriber, BridgeMetrics(CollectorRegistry()))
    try:
        for number, offset in ((1, 1), (3, 3), (3, 4)):
            partition.take(silent(number, offset), read_message(silent(number, offset), SETTINGS))
        reason = dict(partition.ready[-1].headers)["reason"].decode()
    finally:
        await partition.close()
    assert reason == "sequence_number: expected 2, got 3: another chunk with it came before"


def test_a_dead_letter_has_the_beginning_of_the_message_and_headers_that_say_why():
    message = Message(
        topic="audio",
        partition=3,
        offset=17,
        key=b"k" * 5_000,
        value=b"0123456789abc",
        headers=[("theirs", b"left out")],
    )
    record = dead_letter(message, "no JSON", SETTINGS)
    assert (record.topic, record.key, record.value) == (
        SETTINGS.dead_letter_topic,
        b"k" * MOST_KEY_BYTES,
        b"0123456789",
    )
    assert dict(record.headers) == {
        "reason": b"no JSON",
        "source_topic": b"audio",
        "source_partition": b"3",
        "source_offset": b"17",
        "original_bytes": b"13",
    }


def test_a_message_without_key_and_value_has_a_dead_letter():
    record = dead_letter(Message(topic="audio", partition=0, offset=0), "no value", SETTINGS)
    assert (record.key, record.value) == (None, b"")


def test_headers_of_a_message_are_not_read():
    """Those of a broken client make confluent-kafka fail, or end the process."""

    class Broken(Message):
        def headers(self):
            raise SystemError

    assert dict(dead_letter(Broken(topic="audio", partition=0, offset=0), "no JSON", SETTINGS).headers)
