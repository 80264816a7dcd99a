"""Consumer and producer with mock brokers; tests/kafka has real ones."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Message

from serve_app.bridges.broker import Assigned, Batch, Broker, BrokerFailed, Record, TooLarge
from serve_app.bridges.settings import KafkaSettings
from tests.kafka_support import Reader, commit_position, mock_brokers, new_settings, refusing_brokers, send

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_brokers() as address:
        yield address


async def read(settings: KafkaSettings, count: int) -> tuple[list[Assigned], list[bytes]]:
    """What is assigned, and the first so many messages."""
    broker = Broker(settings, lambda partitions: Batch())
    await broker.start()
    assigned: list[Assigned] = []
    values: list[bytes] = []
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(values) < count:
                news, messages = await broker.poll()
                assigned += [new for new in news if isinstance(new, Assigned)]
                values += [message.value() for message in messages]
    finally:
        await broker.close()
    return assigned, values


async def test_a_position_beyond_the_end_means_another_topic_which_is_read_from_its_beginning(brokers):
    settings = new_settings(brokers)
    send(settings, (b"device", b"one"), (b"device", b"two"))
    commit_position(settings, 1_000, "done:AQ==")
    assigned, values = await read(settings, 2)
    assert values == [b"one", b"two"]
    assert {(one.position, one.text) for one in assigned} == {(0, "")}


async def test_a_position_at_the_end_is_kept_and_what_is_before_it_is_read_again(brokers):
    settings = new_settings(brokers)
    send(settings, (b"device", b"one"))
    commit_position(settings, 1, "")
    assigned, values = await read(settings.model_copy(update={"history_messages": 1}), 1)
    assert values == [b"one"]
    assert 1 in {one.position for one in assigned}


@pytest.mark.timeout(240)
async def test_a_partition_that_was_paused_is_read_when_it_comes_back(brokers):
    """Another member of the group had it meanwhile."""
    settings = new_settings(brokers)
    send(settings, (b"device", b"one"))
    first, second = (Broker(settings, lambda partitions: Batch()) for _ in range(2))
    mine: set[int] = set()
    theirs: set[int] = set()

    async def follow(broker: Broker, owned: set[int]) -> set[int]:
        """Poll once; the partitions of the messages that came."""
        news, messages = await broker.poll()
        for new in news:
            if isinstance(new, Assigned):
                owned.add(new.partition)
            else:
                owned.difference_update(new.partitions)
        return {message.partition() for message in messages}

    try:
        async with asyncio.timeout(3 * PATIENCE_SECONDS):
            await first.start()
            while not mine:
                await follow(first, mine)
            everything = set(mine)
            await first.poll(pause=everything)
            await second.start()
            while not theirs or mine & theirs:
                await asyncio.gather(follow(first, mine), follow(second, theirs))
            moved = set(theirs)
            # A rebalance may be under way, which ends only while both take part.
            leaving = asyncio.create_task(second.close())
            while mine != everything or not leaving.done():
                await follow(first, mine)
            await leaving
            send(settings, *((b"%d" % number, b"two") for number in range(100)))
            read: set[int] = set()
            while not moved <= read:
                read |= await follow(first, mine)
    finally:
        await first.close()


class Slowly(list[Record]):
    """Records of which the brokers have refused the first before the next is produced."""

    def __iter__(self) -> Iterator[Record]:
        for record in super().__iter__():
            yield record
            time.sleep(1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("code", [KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE])
async def test_what_the_brokers_call_too_large_is_named_and_dead_letters_are_cut_first(code):
    with refusing_brokers() as (address, refuse):
        settings = new_settings(address, dead_letter_bytes=3)
        answer, other = (
            Record(settings.output_topic, b"device", value, source=Message(topic="audio", partition=0))
            for value in (b"answer", b"other")
        )
        letter = Record(settings.dead_letter_topic, b"device", b"letter")
        broker = Broker(settings, lambda partitions: Batch())

        async def refused(record: Record) -> list[TooLarge]:
            refuse(code)
            batch = Batch(Slowly([record, other]), {0: (0, "")}, {0: 2})
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert not await broker.commit(batch)
                await carried(other)
            return batch.too_large

        async def carried(record: Record) -> None:
            while not await broker.commit(Batch([record], {0: (0, "")}, {0: 1})):
                pass  # after a refusal the mock brokers expect the numbers of what they have refused, once

        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await broker.start()
                while not any(isinstance(new, Assigned) for new in (await broker.poll())[0]):
                    pass
            [too_large] = await refused(answer)
            assert too_large.record is answer
            limit = f"what the brokers take ({settings.output_topic}: max.message.bytes)"
            assert too_large.reason == f"expected {limit}, got 6 bytes, a key of 6 and headers"
            assert await refused(letter) == []
            async with asyncio.timeout(PATIENCE_SECONDS):
                await carried(letter)
            assert await refused(letter) == []
            [too_large] = await refused(letter)
            assert too_large.record is letter
        finally:
            await broker.close()
        reader = Reader(settings, settings.dead_letter_topic)
        try:
            reader.wait_for(1, PATIENCE_SECONDS)
        finally:
            reader.close()
        assert b"l" in [message.value() for message in reader.messages]


async def test_properties_that_are_wrong_leave_no_thread_behind(brokers):
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(BrokerFailed, match=r"no\.such\.property"):
            Broker(new_settings(brokers, librdkafka={"no.such.property": 1}), lambda partitions: Batch())
    assert threading.active_count() <= threads
