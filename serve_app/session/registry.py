"""The sessions of an ingress replica: those with a client, and those that wait for theirs to come back."""

import asyncio
import hashlib
import secrets
import time
import uuid
from collections.abc import Callable

from serve_app.errors import UnknownSession
from serve_app.session.session import Session
from serve_app.settings import SessionSettings
from serve_app.telemetry import IngressMetrics, get_logger

_log = get_logger(__name__)

DISCONNECTED = "disconnected"
"""Outcome of a session whose client was cut off and did not come back."""

TAKE_OVER_SECONDS = 5.0
"""How long the connection that holds a session may take to let go of it."""

TOKEN_BYTES = 24


class Seat:
    """A session and the task that serves its client, if it has one."""

    def __init__(self, session: Session, owner: str) -> None:
        self.session = session
        self.owner = owner
        """What the client showed of itself, hashed: only the same one may take the seat again."""
        self.token = ""
        """What takes the seat again, once."""
        self.started_at = time.monotonic()
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the seat still belongs to the running task."""
        return self._task is asyncio.current_task()


class SessionRegistry:
    """Opens, keeps and hands back sessions. All methods run in one event loop."""

    def __init__(self, make: Callable[[str], Session], settings: SessionSettings, metrics: IngressMetrics) -> None:
        """`make` creates a session with an id."""
        self._make = make
        self._settings = settings
        self._metrics = metrics
        self._seats: dict[str, Seat] = {}  # by token
        self._detached: dict[str, Seat] = {}  # by token, the longest waiting first
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Sessions, with or without a client."""
        return len(self._seats)

    @property
    def waiting(self) -> int:
        """Sessions that wait for their client to come back."""
        return len(self._detached)

    def new(self, credential: str) -> Seat:
        """A seat for a new session that is yet to be opened; `release` it in any case."""
        seat = Seat(self._make(uuid.uuid4().hex), _hash(credential))
        self._issue_token(seat)
        self._metrics.sessions_open.inc()
        return seat

    async def take_back(self, token: str, credential: str) -> Seat:
        """The seat that the token stands for; a connection that still holds it is ended. Raises UnknownSession."""
        seat = self._seats.get(token)
        if seat is None or not secrets.compare_digest(seat.owner, _hash(credential)):
            raise UnknownSession("expected the latest resume token of a session that is still kept, got another one")
        del self._seats[token]
        self._detached.pop(token, None)
        if seat._expiry:
            seat._expiry.cancel()
        holder, seat._task = seat._task, asyncio.current_task()
        self._issue_token(seat)
        if holder:
            holder.cancel()
            await asyncio.wait([holder], timeout=TAKE_OVER_SECONDS)
        return seat

    async def release(self, seat: Seat, outcome: str) -> None:
        """The client's connection is over: keep the session for a while if the client was cut off, else close it."""
        if not seat.is_mine:
            return  # the client is back already, on another connection
        seat._task = None
        keep = outcome == DISCONNECTED and self._settings.resume_window_seconds and self._settings.max_detached_sessions
        if not (keep and seat.session.detach()):
            await self._close(seat, outcome)
            return
        self._detached[seat.token] = seat
        loop = asyncio.get_running_loop()
        seat._expiry = loop.call_later(self._settings.resume_window_seconds, self._expire, seat)
        if len(self._detached) > self._settings.max_detached_sessions:
            self._expire(next(iter(self._detached.values())))

    async def stop(self) -> None:
        """Close the sessions that wait for their clients."""
        for seat in list(self._detached.values()):
            self._expire(seat)
        await asyncio.gather(*self._closing)

    def _issue_token(self, seat: Seat) -> None:
        seat.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._seats[seat.token] = seat

    def _expire(self, seat: Seat) -> None:
        if self._detached.pop(seat.token, None):
            if seat._expiry:
                seat._expiry.cancel()
            closing = asyncio.create_task(self._close(seat, DISCONNECTED))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, seat: Seat, outcome: str) -> None:
        self._seats.pop(seat.token, None)
        self._metrics.sessions_open.dec()
        self._metrics.sessions_total.labels(outcome).inc()
        _log.info(
            "session over",
            session_id=seat.session.id,
            outcome=outcome,
            duration_seconds=round(time.monotonic() - seat.started_at, 3),
            audio_seconds=round(seat.session.audio_seconds, 3),
        )
        await seat.session.close()


def _hash(credential: str) -> str:
    return hashlib.sha256(credential.encode()).hexdigest()
