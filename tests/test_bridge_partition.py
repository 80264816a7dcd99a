"""What a partition writes of a message that cannot be answered."""

from confluent_kafka import Message

from serve_app.bridges.partition import MOST_KEY_BYTES, dead_letter
from tests.kafka_support import new_settings

SETTINGS = new_settings("x", dead_letter_bytes=10)


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
