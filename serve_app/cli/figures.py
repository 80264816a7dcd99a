"""What a service's `/metrics` says, as the few figures that a person watches."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Scrape:
    """The samples of one answer of `/metrics`."""

    def __init__(self, text: str, at: float) -> None:
        """`at` is when they were read, in seconds. Raises ValueError where that is no text of Prometheus'."""
        self.at = at
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The sums of a metric's samples with these labels, by another label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self._samples.get(name, ()):
            if all(found.get(key) == wanted for key, wanted in labels.items()):
                sums[found.get(label, "")] += value
        return dict(sums)

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return sum(self.by("", name, **labels).values())


@dataclass(frozen=True)
class EngineFigures:
    """One engine replica."""

    slots: int
    slots_used: int
    headroom: float
    step_p50_s: float
    step_p95_s: float
    batch_size: float
    frames_per_s: float | None
    cpu_cores: float | None


@dataclass(frozen=True)
class IngressFigures:
    """One ingress replica."""

    sessions: int
    words_per_s: float | None
    cpu_cores: float | None
    memory_bytes: int


@dataclass(frozen=True)
class Figures:
    """The service at one moment. What is a rate, or a delay, is None while nothing is known of it."""

    complete: bool
    """Whether these are the figures of all replicas."""
    sessions: dict[str, int]
    """Sessions by state: waiting, opening, live, moving, parked."""
    slots: int
    slots_used: int
    headroom: float | None
    """Of the engine that has the least."""
    word_delay_s: dict[str, float | None]
    """p50, p95 and p99."""
    first_token_s: dict[str, float | None]
    per_s: dict[str, float | None]
    """Words, sessions that ended, and moves, in each second."""
    refused_per_s: dict[str, float]
    """Clients that were turned away in each second, by reason."""
    lost_replicas: int
    """Replicas that died, since the board lives."""
    engines: dict[str, EngineFigures] = field(default_factory=dict)
    ingresses: dict[str, IngressFigures] = field(default_factory=dict)


def figures(now: Scrape, before: Scrape | None = None) -> Figures:
    """Delays and rates are those since `before`; without it, delays are those of all time, and there are no rates."""
    headrooms = now.by("replica", "stt_engine_headroom")
    refused = _rates(now, before, "reason", "stt_refusals_total")
    return Figures(
        complete=now.sum("stt_metrics_complete") == 1,
        sessions={state: int(count) for state, count in now.by("state", "stt_sessions_open").items()},
        slots=int(now.sum("stt_engine_slots")),
        slots_used=int(now.sum("stt_engine_slots_used")),
        headroom=min(headrooms.values(), default=None),
        word_delay_s=_quantiles(now, before, "stt_word_delay_seconds"),
        first_token_s=_quantiles(now, before, "stt_first_token_seconds"),
        per_s={
            name: _rate(now, before, metric)
            for name, metric in (
                ("words", "stt_words_total"),
                ("sessions", "stt_sessions_total"),
                ("moves", "stt_moves_total"),
            )
        },
        refused_per_s={reason: rate for reason, rate in refused.items() if rate},
        lost_replicas=int(now.sum("stt_replica_events_total", event="lost")),
        engines=_engines(now, before, headrooms),
        ingresses=_ingresses(now, before),
    )


def _engines(now: Scrape, before: Scrape | None, headrooms: Mapping[str, float]) -> dict[str, EngineFigures]:
    gauges = {
        name: now.by("replica", f"stt_engine_{name}")
        for name in ("slots", "slots_used", "step_p50_seconds", "step_p95_seconds", "batch_size_mean")
    }
    return {
        replica: EngineFigures(
            slots=int(gauges["slots"].get(replica, 0)),
            slots_used=int(gauges["slots_used"].get(replica, 0)),
            headroom=headroom,
            step_p50_s=gauges["step_p50_seconds"].get(replica, 0.0),
            step_p95_s=gauges["step_p95_seconds"].get(replica, 0.0),
            batch_size=gauges["batch_size_mean"].get(replica, 0.0),
            frames_per_s=_rate(now, before, "stt_engine_frames_total", replica=replica),
            cpu_cores=_rate(now, before, "process_cpu_seconds_total", replica=replica),
        )
        for replica, headroom in sorted(headrooms.items())
    }


def _ingresses(now: Scrape, before: Scrape | None) -> dict[str, IngressFigures]:
    memory = now.by("replica", "process_resident_memory_bytes", deployment="ingress")
    return {
        replica: IngressFigures(
            sessions=int(sessions),
            words_per_s=_rate(now, before, "stt_words_total", replica=replica),
            cpu_cores=_rate(now, before, "process_cpu_seconds_total", replica=replica),
            memory_bytes=int(memory.get(replica, 0)),
        )
        for replica, sessions in sorted(now.by("replica", "stt_sessions_open").items())
    }


def _rates(now: Scrape, before: Scrape | None, label: str, name: str, **labels: str) -> dict[str, float]:
    """A counter's rise in each second, by a label; a counter that has fallen began anew. Empty without `before`."""
    if before is None or now.at <= before.at:
        return {}
    old = before.by(label, name, **labels)
    return {
        value: _rise(count, old.get(value, 0.0)) / (now.at - before.at)
        for value, count in now.by(label, name, **labels).items()
    }


def _rate(now: Scrape, before: Scrape | None, name: str, **labels: str) -> float | None:
    # By replica: one that has gone, with its count, must not look like a fall of the sum.
    rates = _rates(now, before, "replica", name, **labels)
    return sum(rates.values()) if before else None


def _rise(count: float, old: float) -> float:
    return count - old if count >= old else count


def _quantiles(now: Scrape, before: Scrape | None, name: str) -> dict[str, float | None]:
    buckets = now.by("le", f"{name}_bucket")
    old = before.by("le", f"{name}_bucket") if before else {}
    rises = sorted((float(bound), _rise(count, old.get(bound, 0.0))) for bound, count in buckets.items())
    return {label: quantile(rises, share) for label, share in QUANTILES.items()}


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """The value below which this share of a histogram's numbers lies, as Prometheus estimates it; None of none.

    `buckets` are (upper bound, numbers up to it), rising, the last bound infinite.
    """
    if not buckets or not buckets[-1][1]:
        return None
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below or 1.0)
        low, below = bound, count
    return low
