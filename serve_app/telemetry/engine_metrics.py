"""What an engine process counts; every metric but the stages starts with `stt_engine_`."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_app.telemetry import buckets, stages
from serve_app.telemetry.array_histogram import ArrayHistogram


class EngineMetrics:
    """One engine's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        """The registry these metrics are in."""
        self.stage_seconds = ArrayHistogram(
            stages.NAME, stages.TEXT, "stage", [stages.QUEUE, stages.STEP], buckets.STAGES
        )
        registry.register(self.stage_seconds)
        self.batch_size = Histogram(
            "stt_engine_batch_size", "Streams in one step of the model.", buckets=buckets.STREAMS, registry=registry
        )
        self.links = Gauge("stt_engine_links", "Connections that ingress replicas hold.", registry=registry)
        self.link_bytes_total = Counter(
            "stt_engine_link_bytes_total",
            "Traffic of the links, by direction as the engine sees it: in, out.",
            ["direction"],
            registry=registry,
        )
        for direction in ("in", "out"):
            self.link_bytes_total.labels(direction)
        self.start_seconds = Gauge(
            "stt_engine_start_seconds", "How long the engine's start took, by stage.", ["stage"], registry=registry
        )

    def note_step(self, waits: NDArray[np.float64], seconds: float) -> None:
        """A step took so long; its frames had waited, float64 [n], for it."""
        self.stage_seconds.observe(stages.QUEUE, waits)
        self.stage_seconds.observe(stages.STEP, seconds)
        self.batch_size.observe(len(waits))

    def watch_load(self, load: Callable[[], Mapping[str, float]]) -> None:
        """Have `load()` (see `LoadMetrics`) read whenever the metrics are."""
        self.registry.register(LoadMetrics(load))


class LoadMetrics(Collector):
    """An engine's load report (`serve_app.engine.batcher.Load`) as metrics."""

    GAUGES: Mapping[str, str] = {
        "slots": "Slots of the engine.",
        "slots_used": "Slots in use.",
        "headroom": "1 - p95 of the step time over 80 ms; below 0 streams fall behind.",
        "step_p50_seconds": "Median of the step time over ten seconds.",
        "step_p95_seconds": "95th percentile of the step time over ten seconds.",
        "batch_size_mean": "Mean number of streams per step over ten seconds.",
    }
    """Values that go up and down: field of the load report, description."""

    COUNTERS: Mapping[str, str] = {
        "steps_total": "Steps of the model.",
        "frames_total": "Frames of 80 ms the model has taken.",
        "failed_steps_total": "Steps that failed.",
    }
    """Values that only grow while a replica lives: field of the load report, description."""

    def __init__(self, load: Callable[[], Mapping[str, float]]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        report = self._load()
        for field, text in self.GAUGES.items():
            yield GaugeMetricFamily(f"stt_engine_{field}", text, value=report[field])
        for field, text in self.COUNTERS.items():
            yield CounterMetricFamily(f"stt_engine_{field}", text, value=report[field])
