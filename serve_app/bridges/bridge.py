"""The bridge: reads chunks of audio from Kafka, has them transcribed, and writes what was said, each exactly once.

Everything that is known of a partition follows from what is on it, its committed position and the text beside that. So
whoever owns the partition may die at any moment: the next owner reads the latest messages again and goes on.
"""

import asyncio
import time
from collections.abc import Sequence

from serve_app.bridges.broker import Assigned, Batch, Broker, BrokerFailed, Revoked
from serve_app.bridges.ledger import Ledger
from serve_app.bridges.partition import Partition, Readable, read_message
from serve_app.bridges.settings import KafkaSettings
from serve_app.bridges.transcriber import Transcriber
from serve_app.telemetry import get_logger
from serve_app.telemetry.bridge_metrics import BridgeMetrics

_log = get_logger(__name__)

RESTART_SECONDS = 1.0
"""Pause before everything begins anew after the brokers have failed for good."""

COUNT_SECONDS = 1.0
"""Time between two counts of what is waiting."""

LOOK_SECONDS = 5.0
"""Time between two looks whether the brokers are there and the topic is the same."""


class Bridge:
    """One replica. Use it in one event loop."""

    def __init__(self, settings: KafkaSettings, url: str, api_key: str | None, metrics: BridgeMetrics) -> None:
        """`url` is where the service is."""
        self._settings = settings
        self._metrics = metrics
        self._transcriber = Transcriber(url, api_key, settings.max_sessions)
        self._partitions: dict[int, Partition] = {}
        self._stopping = asyncio.Event()
        self._brokers_answer = False
        self._counted_at = self._looked_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the brokers answer, and the service does where it was asked."""
        return self._brokers_answer and self._transcriber.is_well

    def stop(self) -> None:
        """Have `run` end soon, after a last transaction."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`, whatever the brokers and the service do."""
        while not self._stopping.is_set():
            try:
                await self._work()
            except BrokerFailed as error:
                _log.warning("the brokers failed, everything begins anew", reason=str(error))
            except Exception as error:  # our own mistake: what was committed is right, so begin again from there
                _log.error("the bridge failed, everything begins anew", exc_info=error)
            self._brokers_answer = False
            self._count()
            if not self._stopping.is_set():
                await asyncio.sleep(RESTART_SECONDS)

    async def _work(self) -> None:
        broker = Broker(self._settings, self._batch)
        try:
            await broker.start()
            self._brokers_answer = True
            while not self._stopping.is_set():
                await self._turn(broker)
        finally:
            await broker.close()
            partitions, self._partitions = self._partitions, {}
            for partition in partitions.values():
                await partition.close()

    async def _turn(self, broker: Broker) -> None:
        """Read a little, let time pass, commit what is ready."""
        pause, resume = self._flow()
        news, messages = await broker.poll(pause, resume)
        for new in news:
            await self._change(new)
        contents: list[Readable | str] = []
        if messages:
            contents = await asyncio.to_thread(lambda: [read_message(message, self._settings) for message in messages])
        for message, content in zip(messages, contents, strict=True):
            if partition := self._partitions.get(message.partition() or 0):
                partition.take(message, content)
        for partition in self._partitions.values():
            partition.tick()
        batch = self._batch(list(self._partitions))
        if batch.positions:
            if await broker.commit(batch):
                self._committed(batch)
            else:
                self._metrics.aborts_total.inc()
                for refused in batch.too_large:
                    for partition in self._partitions.values():
                        partition.give_up(refused)
        await self._watch(broker)

    async def _watch(self, broker: Broker) -> None:
        """See now and then whether the brokers are there, and how much waits."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._brokers_answer = await broker.look()
            self._looked_at = time.monotonic()
        if time.monotonic() - self._counted_at >= COUNT_SECONDS:
            self._counted_at = time.monotonic()
            self._count()
            positions = {number: partition.ledger.position for number, partition in self._partitions.items()}
            self._metrics.lag.set(await broker.lag(positions))

    async def _change(self, new: Assigned | Revoked) -> None:
        match new:
            case Assigned(number, position, text):
                _log.info("partition assigned", partition=number, position=position)
                ledger = Ledger(position, text)
                self._partitions[number] = Partition(ledger, self._settings, self._transcriber, self._metrics)
            case Revoked(numbers):
                _log.info("partitions revoked", partitions=list(numbers))
                for number in numbers:
                    if partition := self._partitions.pop(number, None):
                        await partition.close()

    def _flow(self) -> tuple[list[int], list[int]]:
        """Partitions to read no further for now, and those to read again."""
        pause, resume = [], []
        for number, partition in self._partitions.items():
            if not partition.paused and partition.is_full:
                partition.paused = True
                pause.append(number)
            elif partition.paused and partition.has_room:
                partition.paused = False
                resume.append(number)
        return pause, resume

    def _batch(self, numbers: Sequence[int]) -> Batch:
        """What is to be committed of these partitions."""
        batch = Batch()
        for number in numbers:
            partition = self._partitions.get(number)
            if partition and partition.is_uncommitted:
                batch.records += partition.ready
                batch.positions[number] = partition.ledger.statement()
                batch.answers[number] = len(partition.ready)
        return batch

    def _committed(self, batch: Batch) -> None:
        """The transaction is through; meanwhile more may have become ready."""
        self._metrics.transactions_total.inc()
        for number, answers in batch.answers.items():
            partition = self._partitions[number]
            del partition.ready[:answers]
            partition.is_uncommitted = partition.ledger.statement() != batch.positions[number]

    def _count(self) -> None:
        partitions = self._partitions.values()
        self._metrics.connected.set(self.is_ready)
        self._metrics.partitions.set(len(partitions))
        self._metrics.pending.set(sum(partition.ledger.pending for partition in partitions))
        self._metrics.devices.set(sum(partition.devices for partition in partitions))
        self._metrics.sessions.set(self._transcriber.sessions)
