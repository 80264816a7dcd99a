"""What the service and the generator take: processes where they run on this machine, `/metrics` wherever they are."""

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from serve_app.client.address import http_url, is_loopback, stream_url

LOOK_AGAIN_S = 10.0
"""How often processes are looked for; a search takes 50 ms."""

METRICS = {
    "stt_sessions_open": "sessions open",
    "stt_engine_slots_used": "slots used",
    "stt_engine_headroom": "headroom",
    "stt_engine_step_p95_seconds": "step p95 s",
    "stt_engine_batch_size_mean": "batch size",
}
"""What is read of `/metrics`, and what the report calls it."""

_PARTS = {":ingress": "ingress", ":engine": "engine", "VaultActor": "vault", "haproxy": "HAProxy"}
"""What the titles of the service's processes contain."""


class Watch:
    """Looks at everything when asked to."""

    def __init__(self, url: str, api_key: str | None, headers: Mapping[str, str]) -> None:
        address = stream_url(url)
        self._is_local = is_loopback(address)
        self._port = urlsplit(address).port or 0
        self._metrics = http_url(address, "/metrics")
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=1.0, trust_env=not self._is_local, headers={**headers, **key})
        self._processes: dict[psutil.Process, str] = {}
        self._looked_at = -LOOK_AGAIN_S
        self._cpu_s: dict[psutil.Process, tuple[float, float]] = {}

    def processes(self) -> dict[str, dict[str, float]]:
        """Cores in use since the last call, and memory, by what the processes do. Empty at the first call."""
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = time.monotonic()
            self._processes = self._find()
        seen: dict[str, dict[str, float]] = defaultdict(lambda: {"cpu_cores": 0.0, "memory_bytes": 0.0})
        for process, part in self._processes.items():
            with suppress(psutil.Error):
                times, now = process.cpu_times(), time.monotonic()
                cpu_s = times.user + times.system
                before = self._cpu_s.get(process)
                self._cpu_s[process] = (cpu_s, now)
                if before:
                    seen[part]["cpu_cores"] += (cpu_s - before[0]) / max(now - before[1], 1e-3)
                    seen[part]["memory_bytes"] += process.memory_info().rss
        return dict(seen)

    def service(self) -> dict[str, float]:
        """The service's own metrics, those of the busiest engine; empty where it does not tell."""
        found: dict[str, float] = {}
        with suppress(httpx.HTTPError, ValueError):
            text = self._http.get(self._metrics).raise_for_status().text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if name := METRICS.get(sample.name):
                        worst = min if name == "headroom" else max
                        found[name] = worst(sample.value, found.get(name, sample.value))
        return found

    def _find(self) -> dict[psutil.Process, str]:
        ours = psutil.Process(os.getpid())
        relatives = [ours, *ours.children(recursive=True)]
        found = dict.fromkeys(relatives, "generator")
        if self._is_local:
            sessions = _sessions_listening(self._port)
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    part = _part_of("".join(process.cmdline()[:1]))
                    if part and process not in found and os.getsid(process.pid) in sessions:
                        found[process] = part
        return found


def _sessions_listening(port: int) -> set[int]:
    """The sessions (`setsid`) of whoever listens on the port: everything that one launcher started is in one."""
    found = set()
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            with suppress(OSError):
                found.add(os.getsid(connection.pid))
    return found


def _part_of(title: str) -> str | None:
    """What a process of a service does: Ray writes that into its title."""
    if "ServeReplica:" not in title and "VaultActor" not in title and not title.endswith("haproxy"):
        return None
    return next((part for mark, part in _PARTS.items() if mark in title), None)
