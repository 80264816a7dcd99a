"""What brokers say that do not take all that is produced."""

import asyncio

from confluent_kafka.admin import AdminClient, NewTopic

from serve_app.bridges.broker import Assigned, Batch, Broker, Record
from serve_app.bridges.settings import KafkaSettings
from tests.kafka_support import Reader, new_settings

PATIENCE_SECONDS = 120


async def letter(settings: KafkaSettings, value: bytes) -> bytes:
    """What comes out where a dead letter is produced again until the brokers take it."""
    broker = Broker(settings, lambda partitions: Batch())
    await broker.start()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assigned: list[int] = []
            while not assigned:
                news, _ = await broker.poll()
                assigned = [new.partition for new in news if isinstance(new, Assigned)]
            record = Record(settings.dead_letter_topic, b"device", value, (("reason", b"no JSON"),))
            while not await broker.commit(Batch([record], {assigned[0]: (0, "")}, {assigned[0]: 1})):
                pass
    finally:
        await broker.close()
    reader = Reader(settings, settings.dead_letter_topic)
    try:
        await asyncio.to_thread(reader.wait_for, 1, PATIENCE_SECONDS)
    finally:
        reader.close()
    [message] = reader.messages
    assert dict(message.headers()) == {"reason": b"no JSON"}
    return message.value()


async def test_a_dead_letter_may_be_larger_than_producers_send_unless_told(broker):
    value = bytes(3 * 2**20)
    assert await letter(new_settings(broker.address, dead_letter_bytes=len(value)), value) == value


async def test_a_dead_letter_that_the_brokers_refuse_is_cut_until_they_take_it(broker):
    settings = new_settings(broker.address, dead_letter_bytes=100_000)
    admin = AdminClient({"bootstrap.servers": broker.address})
    topic = NewTopic(settings.dead_letter_topic, 4, 1, config={"max.message.bytes": "30000"})
    admin.create_topics([topic])[topic.topic].result(PATIENCE_SECONDS)
    assert await letter(settings, bytes(range(250)) * 400) == (bytes(range(250)) * 400)[:25_000]


async def test_a_dead_letter_that_the_producer_refuses_is_cut_until_it_takes_it(broker):
    settings = new_settings(broker.address, dead_letter_bytes=100_000, librdkafka={"message.max.bytes": 30_000})
    assert len(await letter(settings, bytes(100_000))) == 25_000
