"""What the request router knows of the engine replicas, for the rest of the ingress process.

Serve tells only the router (see `router`) when a replica is added or being stopped. It runs in another thread of this
process, so the two meet here.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable

AVOID_SECONDS = 3.0
"""How long a replica that refused a session is only a last resort for the next ones: long enough to ask all others."""

FRESH_SECONDS = 1.0
"""How long a refusal says that a replica has no room."""


class EngineReplicas:
    """The replicas of one engine deployment that Serve routes to. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds that only rise."""
        self._clock = clock
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._grown_at = -math.inf
        # Both of these names only: what is said of others comes too late.
        self._full_at: dict[str, float] = {}  # when it refused
        self._lost_at: dict[str, float] = {}  # when it did not answer
        self._room_at = -math.inf  # when a slot was given back, on whichever of them
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
                self._grown_at = self._clock()
            self._names = set(names)
            for name in stopped:
                self._full_at.pop(name, None)
                self._lost_at.pop(name, None)
            tell = self._tell_stopped
        if stopped and tell:
            tell(stopped)

    def __contains__(self, name: str) -> bool:
        """Whether Serve routes to this one now."""
        with self._lock:
            return name in self._names

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
            if name in self._names:
                self._full_at[name] = self._clock()

    def note_lost(self, name: str) -> None:
        """The replica does not answer any more, though Serve may still offer it."""
        with self._lock:
            if name in self._names:
                self._lost_at[name] = self._clock()

    def note_room(self, name: str) -> None:
        """The replica has been given a slot back."""
        with self._lock:
            if name in self._names:
                self._full_at.pop(name, None)
                self._room_at = self._clock()

    def avoided_at(self, name: str) -> float | None:
        """When the replica had no room, or was lost; None unless that was a moment ago."""
        with self._lock:
            at = max(self._full_at.get(name, -math.inf), self._lost_at.get(name, -math.inf))
            return at if self._clock() - at < AVOID_SECONDS else None

    def have_all_refused(self) -> bool:
        """Whether no replica had room a moment ago."""
        with self._lock:
            return self._all_refused_since(self._clock() - FRESH_SECONDS)

    def are_full(self, within_s: float) -> bool:
        """Whether each replica has refused somebody so lately, and after any slot was given back."""
        with self._lock:
            return self._all_refused_since(max(self._clock() - within_s, self._room_at))

    def _all_refused_since(self, since: float) -> bool:
        return bool(self._names) and all(self._full_at.get(name, -math.inf) > since for name in self._names)


_BY_DEPLOYMENT: dict[str, EngineReplicas] = {}
"""Those of this process. A module's state, because Serve makes the routers itself and gives them nothing of ours."""


def replicas_of(deployment: str) -> EngineReplicas:
    """What is known in this process of an engine deployment, by its name."""
    return _BY_DEPLOYMENT.setdefault(deployment, EngineReplicas())
