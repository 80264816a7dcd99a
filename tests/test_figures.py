"""Figures from Prometheus' text: sums, rates, quantiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from serve_app.cli.figures import Scrape, figures, quantile
from serve_app.telemetry import EngineMetrics, IngressMetrics, buckets
from serve_app.telemetry.board import ENGINE, INGRESS, Board, Report, Source
from serve_app.telemetry.exposition import merged, render

LOAD = {
    "slots": 32, "slots_used": 5, "headroom": 0.4, "step_p50_seconds": 0.02, "step_p95_seconds": 0.048,
    "batch_size_mean": 4.5, "steps_total": 10, "frames_total": 45, "failed_steps_total": 0,
}  # fmt: skip


class Replicas:
    """Two ingress replicas and an engine, without anything behind their metrics."""

    def __init__(self) -> None:
        self.ingresses = {name: IngressMetrics(CollectorRegistry()) for name in ("one", "two")}
        self.engine = EngineMetrics(CollectorRegistry())
        self.engine.watch_load(lambda: LOAD)

    def scrape(self, at: float) -> Scrape:
        reports = [Report(Source(INGRESS, name), tuple(m.registry.collect())) for name, m in self.ingresses.items()]
        reports.append(Report(Source(ENGINE, "three"), tuple(self.engine.registry.collect())))
        return Scrape(render(merged([*reports, *Board().read()]))[0].decode(), at)


def test_sums_over_replicas_and_rates_between_two_looks():
    replicas = Replicas()
    before = replicas.scrape(100.0)
    replicas.ingresses["one"].words_total.inc(30)
    replicas.ingresses["two"].words_total.inc(10)
    replicas.ingresses["two"].refusals_total.labels("at_capacity").inc(4)
    now = figures(replicas.scrape(110.0), before)
    assert now.per_s["words"] == 4.0
    assert now.refused_per_s == {"at_capacity": 0.4}
    assert (now.slots, now.slots_used, now.headroom) == (32, 5, 0.4)
    assert now.engines["three"].step_p95_s == 0.048
    assert now.word_delay_s == {"p50": None, "p95": None, "p99": None}


def test_a_counter_that_began_anew_and_one_that_is_gone_are_no_fall():
    replicas = Replicas()
    for metrics in replicas.ingresses.values():
        metrics.words_total.inc(100)
    before = replicas.scrape(0.0)
    replicas.ingresses["one"].word_delay_seconds.observe(7.0)
    before_delays = replicas.scrape(1.0)
    del replicas.ingresses["one"]
    replicas.ingresses["two"] = IngressMetrics(CollectorRegistry())
    replicas.ingresses["two"].words_total.inc(20)
    replicas.ingresses["two"].word_delay_seconds.observe(0.6)
    assert figures(replicas.scrape(10.0), before).per_s["words"] == 2.0
    assert figures(replicas.scrape(10.0), before_delays).word_delay_s["p99"] < 0.65


def test_delays_are_those_since_the_last_look():
    replicas = Replicas()
    replicas.ingresses["one"].word_delay_seconds.observe(7.0)
    before = replicas.scrape(0.0)
    assert figures(before).word_delay_s["p50"] == pytest.approx(6.4)
    assert figures(before).per_s["words"] is None
    replicas.ingresses["two"].word_delay_seconds.observe(0.6)
    assert 0.56 <= figures(replicas.scrape(2.0), before).word_delay_s["p99"] <= 0.64


def test_a_service_without_any_replica_has_figures_too():
    nothing = figures(Scrape("", 0.0))
    assert (nothing.slots, nothing.headroom, nothing.engines, nothing.complete) == (0, None, {}, False)


@given(st.lists(st.floats(0.0, 10.0), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_number_that_it_estimates(numbers, share):
    registry = CollectorRegistry()
    histogram = Histogram("some_seconds", "Some.", buckets=buckets.WORDS, registry=registry)
    for number in numbers:
        histogram.observe(number)
    scrape = Scrape(render(merged([Report(None, tuple(registry.collect()))]))[0].decode(), 0.0)
    found = quantile(sorted((float(le), n) for le, n in scrape.by("le", "some_seconds_bucket").items()), share)
    rank = next(number for place, number in enumerate(sorted(numbers), 1) if place >= share * len(numbers))
    upper = next((bound for bound in buckets.WORDS if bound >= rank), buckets.WORDS[-1])
    lower = max((bound for bound in buckets.WORDS if bound < upper), default=0.0)
    assert found is not None
    assert lower <= found <= upper
