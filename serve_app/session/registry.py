"""The sessions of an ingress replica: opens them, keeps them safe, hands them on to whoever resumes them.

A session whose client is cut off is not kept here but in the vault: there is one way back for clients, whether the
network failed, this ingress is replaced, or it died.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from opentelemetry import trace

from serve_app.errors import AtCapacity, ServiceRestarting, SpeechError, TooManySessions, UnknownSession
from serve_app.session import checkpoint
from serve_app.session.checkpoint import Restored
from serve_app.session.keeper import Keeper, Kept, digest, new_hold
from serve_app.session.models import Models, ServedModel
from serve_app.session.session import Session, Standing
from serve_app.session.vault import Saved, VaultClient, VaultUnavailable
from serve_app.settings import SessionSettings
from serve_app.telemetry import IngressMetrics, get_logger

_log = get_logger(__name__)
_tracer = trace.get_tracer(__name__)

DISCONNECTED: Final = "disconnected"
"""Outcome of a session whose client was cut off."""

TAKEN_OVER: Final = "taken_over"
"""Outcome of a session that its client went on with over another connection."""

RESTARTING: Final = "restarting"
"""Outcome of a session whose client was asked to go on at another ingress."""

LEFT: Final = "left"
"""Outcome of a session whose client closed the connection without ending the session."""

HANGUPS = (DISCONNECTED, TAKEN_OVER, RESTARTING)
"""Outcomes of sessions that their clients may go on with."""

SAVE_PATIENCE_SECONDS = 1.0
"""How long a token that the vault does not know may still become known."""

TAKE_OVER_SECONDS = 5.0
"""How long the connection that holds a session may take to let go of it."""

Farewell = Literal["taken_over", "restarting"]


class Seat(Kept):
    """A session and the connection that serves its client."""

    def __init__(
        self, session: Session, credential: str, dialect: str, old_token: str | None = None, hold: str | None = None
    ) -> None:
        super().__init__(session, credential, old_token, hold)
        self.dialect = dialect
        self.key = ""
        """Name of the client's key; empty where nobody needs one."""
        self.audio_before_s = session.audio_seconds
        """Audio that the session had when it came here."""
        self.started_at = time.monotonic()
        self.farewell: Farewell | None = None
        """Why the connection is being ended by us, if it is."""
        self.span = _tracer.start_span("session", attributes={"stt.session_id": session.id, "stt.dialect": dialect})
        """The session at this ingress, as OpenTelemetry sees it; has the event `open` once it has a slot."""
        self.can_move = False
        """Whether the client has said that it resumes by itself when it is told to."""
        self._task = asyncio.current_task()
        self._released = asyncio.Event()

    def end(self, farewell: Farewell) -> None:
        """Have the connection let go of the session."""
        if not self.farewell and self._task:
            self.farewell = farewell
            self._task.cancel()

    def has_no_connection(self) -> None:
        """The connection is over: there is nothing to end any more."""
        self._task = None

    def is_released(self) -> None:
        """The session is not here any more."""
        self._released.set()

    async def wait_until_released(self) -> None:
        """Return when the connection has let go, or has taken too long."""
        try:
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                await self._released.wait()
        except TimeoutError:
            _log.warning("a connection does not let go of its session", session_id=self.session.id)


class SessionRegistry:
    """Opens, keeps and hands on sessions. All methods run in one event loop."""

    def __init__(
        self,
        make: Callable[[str, ServedModel, Restored | None], Session],
        models: Models,
        vault: VaultClient,
        settings: SessionSettings,
        metrics: IngressMetrics,
        *,
        most_per_key: Callable[[str], int | None],
        share_of: Callable[[str], int],
        key_name: Callable[[str], str] = lambda credential: "",
    ) -> None:
        """`make` creates a session of a model; `most_per_key` is how many whoever shows a credential may hold.

        Where that is None, `share_of` says how many of a model, by its name.
        `key_name` is the name of the key that a credential stands for, empty where nobody needs one.
        """
        self._make = make
        self._models = models
        self._settings = settings
        self._metrics = metrics
        self._most_per_key = most_per_key
        self._share_of = share_of
        self._key_name = key_name
        self._keeper = Keeper(vault, metrics, on_taken=self._on_taken)
        self._seats: dict[str, Seat] = {}  # by hold
        self._releasing: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Sessions open here."""
        return len(self._seats)

    def standings(self) -> Counter[tuple[str, Standing]]:
        """By model's name: how many of them have a slot, and how many are on their way to one."""
        return Counter((seat.session.model.name, seat.session.standing) for seat in self._seats.values())

    @property
    def can_resume(self) -> bool:
        """Whether sessions are kept for clients that were cut off."""
        return self._settings.resume_window_seconds > 0

    def start(self) -> None:
        """Start saving sessions."""
        if self.can_resume:
            self._keeper.start()

    async def stop(self) -> None:
        """Save no more."""
        await asyncio.gather(*self._releasing)
        await self._keeper.stop()

    def new(self, credential: str, dialect: str, model: ServedModel, *, may_wait: bool = False) -> Seat:
        """A seat for a new session of a model, that is yet to be opened; `release` it in any case.

        Raises TooManySessions, ServiceRestarting and, unless it `may_wait` for a slot, AtCapacity: one of a crowd that
        finds every slot taken must cost as little as can be.
        """
        with self._refusals_counted():
            self._check_open()
            if not may_wait and model.engines.is_full:
                raise AtCapacity("every slot is taken")
            self._check_share(credential, model)
            return self._seat(self._make(uuid.uuid4().hex, model, None), credential, dialect)

    async def resume(self, token: str, credential: str, dialect: str) -> Seat:
        """A seat for the session that the token stands for, wherever it was; `release` it in any case.

        A connection that still holds it is ended. Raises UnknownSession, TooManySessions, ModelNotReady and
        ServiceRestarting, after which the token is still good.
        """
        with self._refusals_counted():
            return await self._resume(token, credential, dialect)

    async def _resume(self, token: str, credential: str, dialect: str) -> Seat:
        self._check_open()
        if not self.can_resume:
            raise UnknownSession("expected a new session: this service keeps none for clients that were cut off")
        for seat in list(self._seats.values()):
            if token in (seat.token, seat.old_token) and seat.owner == digest(credential):
                seat.end(TAKEN_OVER)
                await seat.wait_until_released()
            elif token == seat.spent_token:
                raise UnknownSession("expected the latest resume token of the session, got the one before")
        hold = new_hold()
        saved = await self._take(token, credential, hold)
        restored = checkpoint.restore(
            saved, lambda name: self._models.named(name).engines.info, self._settings.window_frames
        )
        model = self._models.named(restored.served_as)
        self._check_share(credential, model)  # else who is cut off and opens others would hold more and more
        self._metrics.resumes_total.inc()
        return self._seat(self._make(restored.snapshot.session_id, model, restored), credential, dialect, token, hold)

    def keep(self, seat: Seat) -> None:
        """The session is open: from now on it survives this ingress."""
        self._keeper.add(seat)

    async def release(self, seat: Seat, outcome: str) -> None:
        """The client's connection is over: leave the session to the vault if it may go on, and close it here.

        Goes on by itself if the running task is cancelled.
        """
        releasing = asyncio.create_task(self._release(seat, outcome))
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)
        seat.has_no_connection()
        await asyncio.shield(releasing)

    def close(self) -> None:
        """Take no more sessions: this ingress is being stopped."""
        self._closed = True

    def move_out(self, *, everyone: bool) -> None:
        """Send the clients that resume by themselves to another ingress, or all of them."""
        for seat in list(self._seats.values()):
            if everyone or seat.can_move:
                seat.end(RESTARTING)

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceRestarting("this part of the service is being stopped: connect again")

    def _check_share(self, credential: str, model: ServedModel, but: Seat | None = None) -> None:
        """Raise TooManySessions if one key would hold too many with another one of this model; `but` is not counted."""
        if not credential:
            return
        owner = digest(credential)
        held = [seat.session.model for seat in self._seats.values() if seat.owner == owner and seat is not but]
        if (most := self._most_per_key(credential)) is not None:
            if len(held) >= most:
                raise TooManySessions(f"expected at most {most} sessions at once with one key, got one more")
        elif held.count(model) >= (most := self._share_of(model.name)):
            raise TooManySessions(
                f"expected at most {most} sessions of the model {model.name!r} at once with one key, got one more"
            )

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except SpeechError as error:
            self._metrics.refusals_total.labels(error.code).inc()
            raise

    def _seat(
        self,
        session: Session,
        credential: str,
        dialect: str,
        old_token: str | None = None,
        hold: str | None = None,
    ) -> Seat:
        seat = Seat(session, credential, dialect, old_token, hold)
        seat.key = self._key_name(credential)
        self._seats[seat.hold] = seat
        session.check_change = lambda model: self._check_share(credential, model, seat)
        if seat.key:
            self._metrics.key_sessions_open.labels(seat.key).inc()
        return seat

    async def _release(self, seat: Seat, outcome: str) -> None:
        was_cut_off = outcome in HANGUPS
        may_go_on = was_cut_off and self.can_resume and seat.session.can_go_on
        had_slot = seat.session.standing != "opening"
        goes_on = False
        try:
            await seat.session.close()  # first, for the slot
            goes_on = may_go_on and await self._keeper.let_go(seat)
        finally:
            if may_go_on:
                self._keeper.leave(seat)
            else:
                self._keeper.forget(seat)
            self._seats.pop(seat.hold, None)
            seat.is_released()
        self._count(seat, outcome, refused=not had_slot and outcome not in (*HANGUPS, LEFT))
        facts = {"outcome": outcome, "model": seat.session.model.name, "key": seat.key or None, **seat.session.summary}
        _log.info(
            "session may go on elsewhere" if goes_on else "session over",
            session_id=seat.session.id,
            dialect=seat.dialect,
            duration_seconds=round(time.monotonic() - seat.started_at, 3),
            **facts,
        )
        seat.span.set_attributes({f"stt.{name}": fact for name, fact in facts.items() if fact is not None})
        seat.span.end()

    def _count(self, seat: Seat, outcome: str, *, refused: bool) -> None:
        metrics, audio_seconds = self._metrics, seat.session.audio_seconds - seat.audio_before_s
        metrics.sessions_total.labels(seat.session.model.name, seat.dialect, outcome).inc()
        metrics.session_audio_seconds.observe(audio_seconds)
        if refused:
            metrics.refusals_total.labels(outcome).inc()
        if seat.key:
            metrics.key_sessions_open.labels(seat.key).dec()
            metrics.key_sessions_total.labels(seat.key).inc()
            metrics.key_audio_seconds_total.labels(seat.key).inc(audio_seconds)

    async def _take(self, token: str, credential: str, hold: str) -> Saved:
        """What the vault has of the session; its last ingress may be about to save it. Raises what `resume` does."""
        deadline = time.monotonic() + SAVE_PATIENCE_SECONDS
        while True:
            try:
                saved = await self._keeper.take(token, credential, hold)
            except VaultUnavailable as error:
                raise ServiceRestarting(f"the session cannot be fetched just now: {error}") from error
            if saved is not None:
                return saved
            if time.monotonic() > deadline:
                raise UnknownSession(
                    "expected the latest resume token of a session that is still kept, got another one"
                )
            await asyncio.sleep(0.1)

    def _on_taken(self, kept: Kept) -> None:
        if isinstance(kept, Seat):
            kept.end(TAKEN_OVER)
