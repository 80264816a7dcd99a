"""A replica posts what it counts, and reads what the others posted."""

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from serve_app.telemetry import IngressMetrics
from serve_app.telemetry.board import INGRESS, Source
from serve_app.telemetry.publisher import Publisher
from tests.support import LocalBoard


def replica(name: str, board: LocalBoard) -> tuple[IngressMetrics, Publisher]:
    metrics = IngressMetrics(CollectorRegistry())
    return metrics, Publisher(Source(INGRESS, name), metrics.registry, board)


def values(families: list[Metric], name: str, label: str) -> dict[str, float]:
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels.get(label, ""): sample.value for sample in samples}


async def read_until(publisher: Publisher, reached: Callable[[list[Metric]], bool]) -> list[Metric]:
    async with asyncio.timeout(10):
        while not reached(families := await publisher.everybody()):
            await asyncio.sleep(0.05)
    return families


async def test_each_tells_of_both_its_own_as_it_is_now(engines):
    board = LocalBoard(engines)
    (one, first), (_, second) = replica("one", board), replica("two", board)
    first.start()
    second.start()
    await read_until(first, lambda families: len(values(families, "stt_words_total", "replica")) == 2)
    one.words_total.inc(7)
    families = await first.everybody()
    assert values(families, "stt_words_total", "replica") == {"one": 7, "two": 0}
    assert values(families, "stt_replicas", "deployment") == {"ingress": 2, "engine": 1}
    assert values(families, "process_resident_memory_bytes", "replica")["one"] > 1_000_000
    await first.stop()
    families = await second.everybody()
    assert values(families, "stt_words_total", "replica") == {"two": 0}
    events = [sample for family in families for sample in family.samples if sample.name == "stt_replica_events_total"]
    counted = {(s.labels["deployment"], s.labels["event"]): s.value for s in events if s.value}
    assert counted == {("ingress", "started"): 2, ("ingress", "stopped"): 1, ("engine", "started"): 1}
    await second.stop()


async def test_counters_never_fall_whoever_is_asked(engines):
    """Prometheus would take a fall for a restart, and add all of it to the rate."""
    board = LocalBoard(engines)
    (one, first), (_, second) = replica("one", board), replica("two", board)
    first.start()
    second.start()
    await asyncio.sleep(0)
    one.words_total.inc(5)
    for asked in (first, second, first, second):
        assert values(await asked.everybody(), "stt_words_total", "replica")["one"] == 5
    await first.stop()
    await second.stop()


async def test_without_the_board_each_is_alone_until_it_is_back(engines):
    board = LocalBoard(engines)
    board.available = False
    (_, first), (_, second) = replica("one", board), replica("two", board)
    first.start()
    second.start()
    await asyncio.sleep(0)
    alone = await first.everybody()
    assert values(alone, "stt_metrics_complete", "replica") == {"": 0}
    assert values(alone, "stt_words_total", "replica") == {"one": 0}
    board.available = True
    whole = await read_until(first, lambda families: len(values(families, "stt_words_total", "replica")) == 2)
    assert values(whole, "stt_metrics_complete", "replica") == {"": 1}
    board.available = False
    await first.stop()  # nobody is told
    await second.stop()
