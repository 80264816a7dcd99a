"""The board: where all replicas of the service post what they count, so that any of them can answer for all.

Prometheus asks one address, and the proxy behind it one ingress replica. Engines listen to nobody but ingresses. So
everybody posts every few seconds; who is asked reads what the others posted, in one call, and waits for none of them.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

STALE_SECONDS = 10.0
"""A replica that has not posted for so long is lost."""

POST_SECONDS = 2.0
"""Time between two posts of a replica."""

INGRESS: Final = "ingress"
ENGINE: Final = "engine"
BRIDGE: Final = "bridge"

EVENTS: tuple[Literal["started", "stopped", "lost"], ...] = ("started", "stopped", "lost")


class Source(NamedTuple):
    """Whose metrics they are."""

    deployment: str
    """`INGRESS`, `ENGINE` or `BRIDGE`."""
    replica: str
    model: str = ""
    """The one that an engine has."""


class Report(NamedTuple):
    """What a replica counted; without a source, what the board itself did."""

    source: Source | None
    families: tuple[Metric, ...]
    number: int = 0
    """How many reports the replica had made before: what is on its way must not replace a later one."""


class BoardUnavailable(Exception):
    """The board did not answer in time, or is gone; replicas post again when there is another one."""


class BoardClient(Protocol):
    """A board as a replica reaches it: in another process, or in tests in this one."""

    async def post(self, report: Report) -> None:
        """See `Board.post`. Raises BoardUnavailable."""

    async def leave(self, source: Source) -> None:
        """See `Board.leave`. Raises BoardUnavailable."""

    async def exchange(self, report: Report) -> list[Report]:
        """See `Board.exchange`. Raises BoardUnavailable."""


class Board:
    """Keeps the latest report of each replica. Not thread-safe; every call is short."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds, and only rises."""
        self._clock = clock
        self._reports: dict[Source, tuple[float, Report]] = {}
        self._events: Counter[tuple[str, str]] = Counter()
        self.used_at = time.monotonic()
        """When a replica last posted."""

    def post(self, report: Report) -> None:
        """Take a replica's report in place of its last one."""
        assert report.source, "only the board has nothing to sign with"
        self.used_at = time.monotonic()
        _, last = self._reports.get(report.source, (0.0, None))
        if last is None:
            self._events[report.source.deployment, "started"] += 1
        elif last.number > report.number:
            return
        self._reports[report.source] = (self._clock(), report)

    def leave(self, source: Source) -> None:
        """The replica is being stopped."""
        if self._reports.pop(source, None):
            self._events[source.deployment, "stopped"] += 1

    def exchange(self, report: Report) -> list[Report]:
        """Take a replica's report and answer with all of them.

        Whoever tells others what it counts must do it this way: were its numbers not on the board, the next one asked
        would tell older ones, and a counter that falls looks like a restart.
        """
        self.post(report)
        return self.read()

    def read(self) -> list[Report]:
        """The latest report of every replica that is there, and what became of the others."""
        too_old = self._clock() - STALE_SECONDS
        for source in [source for source, (posted_at, _) in self._reports.items() if posted_at < too_old]:
            del self._reports[source]
            self._events[source.deployment, "lost"] += 1
        return [*(report for _, report in self._reports.values()), Report(None, (self._there(), self._happened()))]

    def _there(self) -> Metric:
        family = GaugeMetricFamily("stt_replicas", "Replicas that are there, by deployment.", labels=["deployment"])
        count = Counter(source.deployment for source in self._reports)
        for deployment in dict.fromkeys([INGRESS, ENGINE, *count]):
            family.add_metric([deployment], count[deployment])
        return family

    def _happened(self) -> Metric:
        family = CounterMetricFamily(
            "stt_replica_events_total",
            "Replicas that came or went, by deployment and event: started, stopped (when told to), lost.",
            labels=["deployment", "event"],
        )
        for deployment in dict.fromkeys([INGRESS, ENGINE, *(deployment for deployment, _ in self._events)]):
            for event in EVENTS:
                family.add_metric([deployment, event], self._events[deployment, event])
        return family
