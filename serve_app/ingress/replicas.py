"""What the request router knows of the engine replicas, for the rest of the ingress process.

Serve tells only the router (see `router`) when a replica is added or being stopped. It runs in another thread of this
process, so the two meet here.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable

AVOID_SECONDS = 1.0
"""How long a replica that refused a session is only a last resort for the next ones."""


class EngineReplicas:
    """The replicas of one engine deployment that Serve routes to. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._grown_at = -math.inf
        self._refused_at: dict[str, float] = {}
        self._tell_stopped: Callable[[set[str]], None] | None = None

    def subscribe(self, on_stopped: Callable[[set[str]], None]) -> None:
        """Have `on_stopped(names)` called in the running event loop whenever Serve stops replicas."""
        loop = asyncio.get_running_loop()

        def tell(names: set[str]) -> None:
            loop.call_soon_threadsafe(on_stopped, names)

        with self._lock:
            self._tell_stopped = tell

    def update(self, names: set[str]) -> None:
        """Take the names of all replicas that Serve routes to now."""
        with self._lock:
            stopped = self._names - names
            if names - self._names:
                self._grown_at = time.monotonic()
            self._names = set(names)
            for name in stopped:
                self._refused_at.pop(name, None)
            tell = self._tell_stopped
        if stopped and tell:
            tell(stopped)

    def __len__(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._names)

    @property
    def grown_at(self) -> float:
        """When the latest one came, in monotonic seconds; minus infinity before the first."""
        with self._lock:
            return self._grown_at

    def note_refusal(self, name: str) -> None:
        """The replica has no room."""
        with self._lock:
            self._refused_at[name] = time.monotonic()

    def note_room(self) -> None:
        """A slot has been given back: what the replicas said before counts no more."""
        with self._lock:
            self._refused_at.clear()

    def has_refused(self, name: str) -> bool:
        """Whether the replica had no room a moment ago."""
        with self._lock:
            return self._has_refused(name, AVOID_SECONDS)

    def have_all_refused(self, within_s: float = AVOID_SECONDS) -> bool:
        """Whether no replica had room a moment ago."""
        with self._lock:
            return bool(self._names) and all(self._has_refused(name, within_s) for name in self._names)

    def _has_refused(self, name: str, within_s: float) -> bool:
        refused_at = self._refused_at.get(name)
        return refused_at is not None and time.monotonic() - refused_at < within_s


_BY_DEPLOYMENT: dict[str, EngineReplicas] = {}
"""Those of this process. A module's state, because Serve makes the routers itself and gives them nothing of ours."""


def replicas_of(deployment: str) -> EngineReplicas:
    """What is known in this process of an engine deployment, by its name."""
    return _BY_DEPLOYMENT.setdefault(deployment, EngineReplicas())
