"""What a service's `/metrics` says, as the few figures that a person watches."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


Series = dict[frozenset[tuple[str, str]], float]
"""A metric's samples by their labels."""


class Scrape:
    """The samples of one answer of `/metrics`."""

    def __init__(self, text: str, at: float) -> None:
        """`at` is when they were read, in seconds. Raises ValueError where that is no text of Prometheus'."""
        self.at = at
        self._metrics: dict[str, Series] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._metrics[sample.name][frozenset(sample.labels.items())] = sample.value

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The sums of a metric's samples with these labels, by another label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self._metrics.get(name, {}).items():
            if labels.items() <= found:
                sums[dict(found).get(label, "")] += value
        return dict(sums)

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return sum(self.by("", name, **labels).values())

    @property
    def is_complete(self) -> bool:
        """Whether all replicas are in it."""
        return self.sum("stt_metrics_complete") == 1

    def since(self, before: "Scrape") -> "Scrape":
        """How much each sample has risen, `at` being the seconds it took.

        A sample that has fallen, or is new, began anew; one that is gone is not there.
        """
        rises = Scrape("", self.at - before.at)
        for name, series in self._metrics.items():
            old = before._metrics.get(name, {})
            for labels, value in series.items():
                start = old.get(labels, 0.0)
                rises._metrics[name][labels] = value - start if value >= start else value
        return rises


@dataclass(frozen=True)
class EngineFigures:
    """One engine replica."""

    model: str
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
    rises = now.since(before) if before and now.at > before.at else None
    headrooms = now.by("replica", "stt_engine_headroom")
    refused = rises.by("reason", "stt_refusals_total") if rises else {}
    return Figures(
        complete=now.is_complete,
        sessions={state: int(count) for state, count in now.by("state", "stt_sessions_open").items()},
        slots=int(now.sum("stt_engine_slots")),
        slots_used=int(now.sum("stt_engine_slots_used")),
        headroom=min(headrooms.values(), default=None),
        word_delay_s=_quantiles(rises or now, "stt_word_delay_seconds"),
        first_token_s=_quantiles(rises or now, "stt_first_token_seconds"),
        per_s={name: _rate(rises, f"stt_{name}_total") for name in ("words", "sessions", "moves")},
        refused_per_s={reason: count / rises.at for reason, count in refused.items() if count and rises},
        lost_replicas=int(now.sum("stt_replica_events_total", event="lost")),
        engines={name: _engine(name, now, rises) for name in sorted(headrooms)},
        ingresses={name: _ingress(name, now, rises) for name in sorted(now.by("replica", "stt_sessions_open"))},
    )


def _engine(replica: str, now: Scrape, rises: Scrape | None) -> EngineFigures:
    return EngineFigures(
        model=next(iter(now.by("model", "stt_engine_slots", replica=replica)), ""),
        slots=int(now.sum("stt_engine_slots", replica=replica)),
        slots_used=int(now.sum("stt_engine_slots_used", replica=replica)),
        headroom=now.sum("stt_engine_headroom", replica=replica),
        step_p50_s=now.sum("stt_engine_step_p50_seconds", replica=replica),
        step_p95_s=now.sum("stt_engine_step_p95_seconds", replica=replica),
        batch_size=now.sum("stt_engine_batch_size_mean", replica=replica),
        frames_per_s=_rate(rises, "stt_engine_frames_total", replica=replica),
        cpu_cores=_rate(rises, "process_cpu_seconds_total", replica=replica),
    )


def _ingress(replica: str, now: Scrape, rises: Scrape | None) -> IngressFigures:
    return IngressFigures(
        sessions=int(now.sum("stt_sessions_open", replica=replica)),
        words_per_s=_rate(rises, "stt_words_total", replica=replica),
        cpu_cores=_rate(rises, "process_cpu_seconds_total", replica=replica),
        memory_bytes=int(now.sum("process_resident_memory_bytes", replica=replica)),
    )


def _rate(rises: Scrape | None, name: str, **labels: str) -> float | None:
    return rises.sum(name, **labels) / rises.at if rises else None


def _quantiles(scrape: Scrape, name: str) -> dict[str, float | None]:
    buckets = sorted((float(bound), count) for bound, count in scrape.by("le", f"{name}_bucket").items())
    return {label: quantile(buckets, share) for label, share in QUANTILES.items()}


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
