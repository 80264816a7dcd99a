"""The brokers: a consumer of the input topic, and a producer whose transactions carry answers and positions together.

librdkafka's calls block, so all of them run in one thread of their own, and so do its callbacks when partitions come
and go. A position may only be committed while the partition is ours, so the callbacks commit what is ready before they
let go.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, TopicDescription

from serve_app.bridges.librdkafka_log import LibrdkafkaLog
from serve_app.bridges.settings import KafkaSettings
from serve_app.bridges.topic_mark import mark, unmark
from serve_app.bridges.worker import CallStuck, Worker
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

POLL_SECONDS = 0.05
"""How long to wait for messages at once; answers that are ready meanwhile wait as long."""

MESSAGES_AT_ONCE = 32

CALL_SECONDS = 10.0
"""How long a call to the brokers may take before it is made again."""

PATIENCE_SECONDS = 15.0
"""How long calls are made again before everything begins anew."""

STUCK_SECONDS = 60.0
"""More than any call takes. One in librdkafka's transactions may never return when the brokers were away for long."""

SESSION_SECONDS = 10.0
"""A replica of which the brokers have not heard for so long has lost its partitions."""

LOOK_TIMEOUT_SECONDS = 2.0
"""How long brokers may take to say that they are there; meanwhile nothing else is done."""

LARGEST_ANSWER_BYTES = 2**30
"""More than any message: an answer over librdkafka's own limit would be refused again and again."""

LETTER_EXTRA_BYTES = 16 * 2**10
"""More than there is to a dead letter beside what is kept of the message."""

MOST_PRODUCED_BYTES = 10**9
"""librdkafka's own limit."""

TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
"""Errors that say so of a message."""

TELL_SECONDS = 5.0
"""How long the event loop may take to say what is ready, when partitions are given back."""


class BrokerFailed(Exception):
    """This consumer and this producer are of no use any more; new ones may be."""


@dataclass(frozen=True)
class Record:
    """A message to produce."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    source: Message | None = None
    """What an answer answers; None for a dead letter."""


@dataclass(frozen=True)
class TooLarge:
    """A message that the brokers do not take, however often it is sent."""

    record: Record
    reason: str


@dataclass
class Batch:
    """What one transaction carries."""

    records: list[Record] = field(default_factory=list)
    positions: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By partition: its position, and the text with it."""
    answers: dict[int, int] = field(default_factory=dict)
    """By partition: how many of the records are its own."""
    too_large: list[TooLarge] = field(default_factory=list)
    """After a transaction that did not come to be: the records that no transaction can carry."""


@dataclass(frozen=True)
class Assigned:
    """A partition that is ours from now on."""

    partition: int
    position: int
    """What was committed last; its first offset where nothing was."""
    text: str
    """What was committed with it; empty where nothing was."""


@dataclass(frozen=True)
class Revoked:
    """Partitions that are ours no more."""

    partitions: tuple[int, ...]


class Broker:
    """See the module's docstring. Its methods run in one event loop."""

    def __init__(self, settings: KafkaSettings, last_words: Callable[[Sequence[int]], Batch]) -> None:
        """`last_words` is called in the event loop when partitions are given back: what is still to be committed.

        Raises BrokerFailed for properties that librdkafka does not take.
        """
        self._settings = settings
        self._last_words = last_words
        self._loop = asyncio.get_running_loop()
        self._news: list[Assigned | Revoked] = []
        self._letter_bytes = settings.dead_letter_bytes  # less where the brokers take less
        most_bytes = min(max(10**6, self._letter_bytes + LETTER_EXTRA_BYTES), MOST_PRODUCED_BYTES)
        self._most_bytes = settings.client_properties.get("message.max.bytes", most_bytes)
        try:
            self._consumer, self._producer, self._admin = self._clients()
        except KafkaException as error:
            raise BrokerFailed(str(error.args[0])) from error
        self._thread = Worker("kafka")
        self._topic_id = ""  # of the input topic; '' while it is not known
        self._asked: Future[TopicDescription] | None = None

    def _clients(self) -> tuple[Consumer, Producer, AdminClient]:
        settings, common = self._settings, self._settings.client_properties | {"logger": LibrdkafkaLog()}
        consumer = Consumer(
            {
                "session.timeout.ms": round(1000 * SESSION_SECONDS),
                "receive.message.max.bytes": LARGEST_ANSWER_BYTES,
                "queued.max.messages.kbytes": 16 * 1024,
                "fetch.max.bytes": 8 * 2**20,
                "message.max.bytes": 2**20,
                **common,
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "partition.assignment.strategy": "cooperative-sticky",
            }
        )
        producer = Producer(
            {
                "transaction.timeout.ms": round(1000 * settings.transaction_timeout_seconds),
                "linger.ms": 0,
                "message.max.bytes": self._most_bytes,
                **common,
                "batch.num.messages": 1,  # brokers that take little refuse a whole batch: nobody knows for which one
                # Of its own for each life: a partition's owner is told apart by its place in the consumer group.
                "transactional.id": f"{settings.transactional_id_prefix}-{secrets.token_hex(8)}",
            }
        )
        return consumer, producer, AdminClient(common)

    async def start(self) -> None:
        """Reach the brokers and join the group. Raises BrokerFailed."""
        await self._in_thread(self._start)

    async def poll(
        self, pause: Iterable[int] = (), resume: Iterable[int] = ()
    ) -> tuple[list[Assigned | Revoked], list[Message]]:
        """Partitions that have come and gone, and then messages, waited for a moment; first pause or resume some.

        Raises BrokerFailed.
        """
        return await self._in_thread(self._poll, list(pause), list(resume))

    async def commit(self, batch: Batch) -> bool:
        """Carry everything over in one transaction, or nothing: then it may be tried again. Raises BrokerFailed."""
        return await self._in_thread(self._commit, batch)

    async def lag(self, positions: Mapping[int, int]) -> int:
        """Messages on our partitions behind these positions, as far as is known."""
        return await self._in_thread(self._lag, dict(positions))

    async def look(self) -> bool:
        """Whether the brokers answer. Raises BrokerFailed where the input topic is no longer the one that was read."""
        return await self._in_thread(self._look)

    async def close(self) -> None:
        """Give all partitions back, with a last transaction, and go."""
        try:
            await self._in_thread(self._consumer.close)
        except BrokerFailed as error:
            _log.warning("the group could not be left", reason=str(error))
        finally:
            self._thread.close()

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self._thread.run(call, *arguments, timeout_s=STUCK_SECONDS)
        except KafkaException as error:
            raise BrokerFailed(str(error.args[0])) from error
        except CallStuck as error:
            # It is the producer that is stuck, and its thread with it; the consumer can still leave the group.
            self._thread.close()
            self._thread = Worker("kafka")
            raise BrokerFailed(str(error)) from error

    # ------------------------------------------------------------------ in the thread

    def _start(self) -> None:
        self._make_topics()
        self._ask_for_topic_id()
        self._producer.init_transactions(CALL_SECONDS)
        self._consumer.subscribe(
            [self._settings.input_topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def _make_topics(self) -> None:
        """Make the topics that are missing: without one for dead letters a single one would stop everything."""
        settings = self._settings
        there = self._admin.list_topics(timeout=CALL_SECONDS).topics
        source = there.get(settings.input_topic)
        partitions = len(source.partitions) if source and source.partitions else -1
        for name in (settings.input_topic, settings.output_topic, settings.dead_letter_topic):
            # Brokers may be so kind as to make a topic when it is asked for.
            if name in there or self._admin.list_topics(name, timeout=CALL_SECONDS).topics[name].error is None:
                continue
            try:
                self._admin.create_topics([NewTopic(name, partitions)])[name].result(CALL_SECONDS)
                _log.info("topic made", topic=name)
            except TimeoutError:
                _log.warning("topic could not be made", topic=name, reason=f"no answer within {CALL_SECONDS:g} s")
            except KafkaException as failure:
                error: KafkaError = failure.args[0]
                if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:  # as another replica, or asking for it, made it
                    _log.warning("topic could not be made", topic=name, reason=str(error))

    def _poll(self, pause: list[int], resume: list[int]) -> tuple[list[Assigned | Revoked], list[Message]]:
        if pause:
            self._consumer.pause(self._places(pause))
        if resume:
            self._consumer.resume(self._places(resume))
        for client in (self._producer, self._admin):
            client.poll(0)  # for what they have to log
        messages = []
        for message in self._consumer.consume(MESSAGES_AT_ONCE, POLL_SECONDS):
            if (error := message.error()) is None:
                messages.append(message)
            elif error.fatal():
                raise KafkaException(error)
            else:
                _log.warning("the brokers report an error", reason=str(error))
        news, self._news = self._news, []
        return news, messages

    def _look(self) -> bool:
        try:
            self._consumer.list_topics(self._settings.input_topic, timeout=LOOK_TIMEOUT_SECONDS)
        except KafkaException:
            return False
        if self._asked and self._asked.done():
            self._learn_topic_id(self._asked)
            self._ask_for_topic_id()
        return True

    def _ask_for_topic_id(self) -> Future[TopicDescription]:
        name = self._settings.input_topic
        self._asked = self._admin.describe_topics(TopicCollection([name]), request_timeout=LOOK_TIMEOUT_SECONDS)[name]
        return self._asked

    def _learn_topic_id(self, answer: Future[TopicDescription]) -> None:
        """Wait for the answer. Raises BrokerFailed where the topic is another one than before."""
        try:
            topic_id = str(answer.result(CALL_SECONDS).topic_id)
        except (KafkaException, TimeoutError):  # there is no topic now, or nobody who tells
            return
        if self._topic_id not in ("", topic_id):
            raise BrokerFailed(f"the topic {self._settings.input_topic} was deleted and made again")
        self._topic_id = topic_id

    def _places(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._settings.input_topic, partition) for partition in partitions]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Read from before the committed position on: what was said there tells about what follows."""
        # The answer asked for at the start, or a new one; brokers that have not told are not waited for again.
        self._learn_topic_id(self._ask_for_topic_id() if self._topic_id or not self._asked else self._asked)
        places = []
        # The brokers do not tell positions while a transaction is open, be it that of a replica that has died.
        timeout_s = self._settings.transaction_timeout_seconds + CALL_SECONDS
        for place in consumer.committed(partitions, timeout=timeout_s) if partitions else []:
            if place.error:
                raise KafkaException(place.error)
            low, high = consumer.get_watermark_offsets(place, timeout=CALL_SECONDS)
            position, (topic_id, text) = place.offset, unmark(place.metadata or "")
            if position < 0:
                position, text = low, ""
            elif position > high or (topic_id and self._topic_id and topic_id != self._topic_id):
                _log.warning(
                    "position belongs to another topic of this name, or the topic was restored: it is read from its"
                    " beginning",
                    partition=place.partition, position=position, begins=low, ends=high,
                )  # fmt: skip
                position, text = low, ""
            self._news.append(Assigned(place.partition, position, text))
            start = min(max(low, position - self._settings.history_messages), high)
            places.append(TopicPartition(place.topic, place.partition, start))
        consumer.incremental_assign(places)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.resume(partitions)  # or what was paused stays so, should it come back
        mine = tuple(place.partition for place in partitions)
        asked = asyncio.run_coroutine_threadsafe(self._ask(mine), self._loop)
        try:
            self._commit(asked.result(TELL_SECONDS))
        except (KafkaException, TimeoutError) as error:  # the next owner does it again
            _log.warning("the last answers were not committed", reason=str(error))
        self._news.append(Revoked(mine))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.resume(partitions)
        self._news.append(Revoked(tuple(place.partition for place in partitions)))

    async def _ask(self, partitions: Sequence[int]) -> Batch:
        return self._last_words(partitions)

    def _commit(self, batch: Batch) -> bool:
        if not batch.positions:
            return True
        try:
            self._producer.begin_transaction()
            for record in batch.records:
                self._produce(record, batch)
            if batch.too_large:
                return self._abort("messages are too large")
            positions = [
                TopicPartition(self._settings.input_topic, partition, position, metadata=mark(self._topic_id, text))
                for partition, (position, text) in batch.positions.items()
            ]
            group = self._consumer.consumer_group_metadata()
            _again(lambda: self._producer.send_offsets_to_transaction(positions, group, CALL_SECONDS))
            _again(lambda: self._producer.commit_transaction(CALL_SECONDS))
        except KafkaException as failure:
            error: KafkaError = failure.args[0]
            # A message of a transaction that has failed meanwhile is no longer taken, and the error says no more.
            if not error.txn_requires_abort() and error.code() != KafkaError._STATE:
                raise
            return self._abort(str(error))
        return True

    def _abort(self, reason: str) -> Literal[False]:
        _log.warning("transaction aborted", reason=reason)
        _again(lambda: self._producer.abort_transaction(CALL_SECONDS))
        return False

    def _produce(self, record: Record, batch: Batch) -> None:
        """Hand a message over, waiting where librdkafka's queue is full; of a dead letter only as much as is taken."""
        while True:
            value = record.value[: self._letter_bytes] if record.source is None else record.value
            delivered = partial(self._delivered, batch, record, len(value))
            try:
                self._producer.produce(
                    record.topic, value=value, key=record.key, headers=list(record.headers), on_delivery=delivered
                )
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as failure:
                if failure.args[0].code() not in TOO_LARGE:
                    raise
                limit = f"at most {self._most_bytes} bytes in all (kafka.librdkafka: message.max.bytes)"
                if not self._shorter(batch, record, len(value), limit):
                    return

    def _delivered(self, batch: Batch, record: Record, size: int, error: KafkaError | None, _: Message) -> None:
        if error and error.code() in TOO_LARGE:
            self._shorter(batch, record, size, f"what the brokers take ({record.topic}: max.message.bytes)")

    def _shorter(self, batch: Batch, record: Record, size: int, limit: str) -> bool:
        """A message was too large. Keep less of the next dead letters, in the end nothing but the reason; whether
        that may help, else it cannot be produced.
        """
        if record.source is not None or not size:
            if record.source is None:  # its key or its reason is too long, which says nothing of the next ones
                self._letter_bytes = self._settings.dead_letter_bytes
            got = f"{size} bytes, a key of {len(record.key or b'')} and headers"
            batch.too_large.append(TooLarge(record, f"expected {limit}, got {got}"))
            return False
        if size // 2 < self._letter_bytes:
            self._letter_bytes = size // 2
            _log.warning("dead letters are cut shorter: the brokers take none so long", bytes=self._letter_bytes)
        return True

    def _lag(self, positions: dict[int, int]) -> int:
        lag = 0
        for place in self._places(positions):
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            lag += max(0, high - positions[place.partition])
        return lag


def _again(call: Callable[[], None]) -> None:
    """Make a call until it is through, or fails for a reason that does not pass."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call()
            return
        except KafkaException as failure:
            if not failure.args[0].retriable() or time.monotonic() > deadline:
                raise
            _log.warning("the brokers are asked again", reason=str(failure.args[0]))
            time.sleep(0.1)
