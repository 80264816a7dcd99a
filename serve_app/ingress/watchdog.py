"""Counts what an ingress replica holds, so that a leak shows: in `/status`, in the metrics, and in the log.

With no session open and nobody waiting there must be no lease on an engine and no task of a session.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterator, Mapping

import psutil  # type: ignore[import-untyped]
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_app.session.models import Models
from serve_app.session.registry import SessionRegistry
from serve_app.session.session import Standing
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

LOOK_SECONDS = 5.0
"""Time between two looks. What is closing at one of them is gone at the next."""

_STATES: tuple[Standing, ...] = ("live", "moving", "parked")

SESSION_TASKS = "session-"
"""How the names of a session's tasks begin."""


class Watchdog(Collector):
    """Watches one ingress replica; a collector of metrics, too."""

    DESCRIPTIONS: Mapping[str, str] = {
        "leases": "Slots that this replica holds on engines.",
        "session_tasks": "Tasks that belong to sessions.",
        "tasks": "Tasks of the event loop.",
        "sockets": "Sockets of the process: to clients, engines and Ray.",
    }
    """The counts that are metrics of their own: name, description."""

    def __init__(self, sessions: SessionRegistry, models: Models) -> None:
        self._sessions = sessions
        self._models = models
        self._process = psutil.Process()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start looking."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._watch(), name="watchdog")

    async def stop(self) -> None:
        """Look no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def counts(self) -> dict[str, int]:
        """What is held now, and what of the system's."""
        return self._own_counts() | {
            "sockets": _sockets(),
            "open_files": self._process.num_fds(),
            "memory_bytes": self._process.memory_info().rss,
        }

    def _own_counts(self) -> dict[str, int]:
        tasks = asyncio.all_tasks(self._loop) if self._loop else set()
        return {
            "sessions": len(self._sessions),
            "clients_waiting": self._models.waiting,
            "leases": self._models.leases,
            "session_tasks": sum(task.get_name().startswith(SESSION_TASKS) for task in tasks),
            "tasks": len(tasks),
        }

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        yield self._sessions_open()
        counts = self.counts()
        for name, text in self.DESCRIPTIONS.items():
            yield GaugeMetricFamily(f"stt_ingress_{name}", text, value=counts[name])

    def _sessions_open(self) -> Metric:
        family = GaugeMetricFamily(
            "stt_sessions_open",
            "Sessions that are here, by model and state: waiting (in line for a slot), opening, live, moving (to"
            " another slot), parked (without one, while nobody speaks).",
            labels=["model", "state"],
        )
        standings = self._sessions.standings()
        for model in self._models:
            waiting = len(model.admission)
            family.add_metric([model.name, "waiting"], waiting)
            family.add_metric([model.name, "opening"], max(0, standings[model.name, "opening"] - waiting))
            for state in _STATES:
                family.add_metric([model.name, state], standings[model.name, state])
        return family

    async def _watch(self) -> None:
        leaking = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            counts = self._own_counts()
            idle = not counts["sessions"] and not counts["clients_waiting"]
            was_leaking, leaking = leaking, idle and bool(counts["leases"] or counts["session_tasks"])
            if leaking and was_leaking:
                _log.error("something is held although no session is open", **self.counts())


def _sockets() -> int:
    """Sockets that this process has. Not psutil's: that reads all connections of the machine, while sessions wait."""
    count = 0
    for descriptor in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the one that read the folder is closed by now
            count += stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
    return count
