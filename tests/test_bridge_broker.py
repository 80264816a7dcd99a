"""Consumer and producer with mock brokers; tests/kafka has real ones."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serve_app.bridges.broker import Assigned, Batch, Broker, BrokerFailed
from serve_app.bridges.settings import KafkaSettings
from tests.kafka_support import commit_position, mock_brokers, new_settings, send

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
            await second.close()
            while mine != everything:
                await follow(first, mine)
            send(settings, *((b"%d" % number, b"two") for number in range(100)))
            read: set[int] = set()
            while not moved <= read:
                read |= await follow(first, mine)
    finally:
        await first.close()


async def test_properties_that_are_wrong_leave_no_thread_behind(brokers):
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(BrokerFailed, match=r"no\.such\.property"):
            Broker(new_settings(brokers, librdkafka={"no.such.property": 1}), lambda partitions: Batch())
    assert threading.active_count() <= threads
