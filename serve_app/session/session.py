"""One conversation: audio in, transcript events out, from `open` to `close`.

Knows no wire format and no Ray. One task feeds it, another one reads `events`. Both may be cancelled at any moment:
nothing that was taken is lost, and `checkpoint` has it. `close` gives the engine's slot back whatever has happened.
"""

import asyncio
import enum
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import IdleTimeout, InvalidMessage, SessionTooLong, SlowClient, SpeechError, UnknownSession
from serve_app.session import checkpoint, durable_stream
from serve_app.session.arrivals import Arrivals
from serve_app.session.checkpoint import Restored, Snapshot
from serve_app.session.core import Done, Event, Failure, Frame, SessionCore, Status
from serve_app.session.durable_stream import DurableStream
from serve_app.session.event_log import EventLog
from serve_app.session.models import ServedModel
from serve_app.session.recorder import Recorder
from serve_app.session.recovery import Recovery
from serve_app.session.tally import KEPT_DELAYS, Tally
from serve_app.session.vault import Piece
from serve_app.settings import SessionSettings
from serve_app.speech import FrameResult
from serve_app.telemetry import IngressMetrics, get_logger
from serve_app.transcript import Token, TurnEnd, Word

_log = get_logger(__name__)

RESTART_FRAMES = 25
"""Frames (2 s) of its past that a decoder is given when it starts again."""


Standing: TypeAlias = Literal["opening", "live", "moving", "parked"]


class State(enum.Enum):
    """The states of a session; each call names those it is allowed in."""

    NEW = "new"
    LIVE = "live"
    ENDING = "ending"
    OVER = "over"


class Marks(NamedTuple):
    """How far a session had come: places in its records of audio, results and events."""

    sent: int = 0
    answered: int = 0
    events: int = 0


class Session:
    """See the module's docstring. All methods run in one event loop; one feeder and one reader at a time."""

    def __init__(
        self,
        session_id: str,
        model: ServedModel,
        settings: SessionSettings,
        metrics: IngressMetrics,
        restored: Restored | None = None,
    ) -> None:
        """A new session, or with `restored` one that goes on, whose model must be known. Raises ModelNotReady."""
        self.id = session_id
        self._settings = settings
        self._metrics = metrics
        self._log: EventLog[Event] = EventLog(settings.event_buffer, restored.entries if restored else (), Done)
        self.model = model
        self._has_model = False
        if restored:
            self._use_model(restored)
        self.check_change: Callable[[ServedModel], None] = lambda model: None
        """Raises TooManySessions if the client may not have one of that model instead."""
        self._is_open = False
        self._is_closed = False
        self._error: SpeechError | None = None

        self._tally = restored.snapshot.tally if restored else Tally()
        self._word_delays_s: deque[float] = deque(maxlen=KEPT_DELAYS)  # of those told here
        self._first_audio_at: float | None = None
        self._opened_at = restored.snapshot.opened_at if restored else time.time()
        self._last_audio_at = time.monotonic()
        self._feeding = False
        self._watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ for the feeder

    def tell_frames(self, wanted: bool) -> None:
        """Whether every frame's result is an event of its own, from now on; for a session that is open."""
        self._core.tells_frames = wanted

    async def change_model(self, model: ServedModel) -> None:
        """Begin anew with another model.

        Raises InvalidMessage once there is audio, TooManySessions, and what `open` does.
        """
        self._require(State.LIVE)
        if model is self.model:
            return
        if self._core.client_samples or self._core.flushes:
            raise InvalidMessage(f"expected the model before any audio, got {model.name!r} later: connect again for it")
        self.check_change(model)
        self.model = model  # at once: it counts as one of that model's from now on
        await self._stream.close()  # first: nothing of the old model may be heard any more
        tells_frames = self._core.tells_frames
        self._feeding = True  # waiting for an engine or a slot is not idling
        try:
            await model.engines.wait_until_known()
            self._use_model(None)
            self._core.tells_frames = tells_frames
            async for _ in model.admission.enter(self._stream.open, wait_s=0.0):
                pass
        finally:
            self._feeding = False
            self._last_audio_at = time.monotonic()
        await self._send_outgoing()

    async def open(self) -> None:
        """Take a slot. Raises ModelNotReady, AtCapacity or EngineLost."""
        self._require(State.NEW)
        asked_at = time.monotonic()
        if not self._has_model:  # not before: who waits for the first engine is a session, too
            self._use_model(None)
        await self._stream.open()
        self._opened_at = time.time()
        self._metrics.admission_seconds.observe(time.monotonic() - asked_at)
        self._begin()
        await self._send_outgoing()

    def resume(self, last_number: int) -> None:
        """Go on where the session was, for a client that has seen the events up to this number.

        Raises InvalidMessage if events that it has not seen are no longer kept, UnknownSession if there are none left.
        """
        self._require(State.NEW)
        if not self._log.can_go_on_after(last_number):
            raise InvalidMessage(f"expected the number of a recent event, got {last_number}: cannot resume from there")
        if self._log.ends_with(Done, last_number):
            raise UnknownSession("expected a session that goes on, this one is over and was told to the end")
        self._log.seek(last_number)
        self._tally.resumes += 1
        self._begin()
        if not self._core.is_over:
            self._stream.resume()

    async def go_on(self) -> None:
        """Send what was taken from the client before it was cut off."""
        await self._send_outgoing()

    async def feed(self, samples: NDArray[np.float32]) -> None:
        """Take audio, float32 [n] at 24 kHz; waits while the engine is a window behind (backpressure)."""
        self._require(State.LIVE)
        arrived_at = time.monotonic()
        self._first_audio_at = self._first_audio_at or arrived_at
        self._core.take_audio(samples)
        self._arrivals.note(self._core.client_samples, arrived_at)
        if await self._send_outgoing():
            self._metrics.audio_seconds.observe(time.monotonic() - arrived_at)

    async def flush(self) -> None:
        """Bring out everything said so far, then a Flushed event; the session goes on."""
        self._require(State.LIVE)
        self._core.take_flush()
        await self._send_outgoing()

    async def mark(self, mark: int | None, *, delayed: bool) -> None:
        """Say Marked when what was sent before has been heard; see `SessionCore.take_mark`."""
        self._require(State.LIVE)
        await self._log.wait_until_half_read()
        self._emit(self._core.take_mark(mark, delayed=delayed))

    async def end(self) -> None:
        """Bring out the rest, then a Done event; no more audio is taken. Saying it twice is no mistake."""
        if self._state is State.ENDING and not self._error:
            return
        self._require(State.LIVE)
        self._core.take_end()
        await self._send_outgoing()

    async def end_with_mistake(self, error: SpeechError) -> None:
        """Bring out the rest of what was said before the client's mistake; then `events` raises the error."""
        if self._state not in (State.LIVE, State.ENDING):
            self._fail(error)
            return
        self._core.take_mistake(error)
        await self._send_outgoing()

    # ------------------------------------------------------------------ for the reader

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """The session's events and their numbers; ends after Done.

        Raises the error that ended the session, if one did.
        """
        async for number, event in self._log.read():
            if isinstance(event, Failure):
                raise event.error
            yield number, event
            self._note_told(event)  # who reads asks for the next event when this one is on its way
            if isinstance(event, Done):
                return

    # ------------------------------------------------------------------ for who keeps it

    @property
    def received(self) -> tuple[int, int, bool]:
        """What has been taken from the client so far: samples, flushes, and whether the end."""
        return self._core.client_samples, self._core.flushes, self._core.ended

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio that the client has sent so far."""
        return self._core.audio_seconds if self._has_model else 0.0

    @property
    def standing(self) -> Standing:
        """Whether it has a slot."""
        return self._stream.standing if self._is_open else "opening"

    @property
    def summary(self) -> dict[str, int | float | None]:
        """What is worth knowing of it once it is over, by name."""
        return {"audio_seconds": round(self.audio_seconds, 3), **self._tally.summary(self._word_delays_s)}

    @property
    def can_go_on(self) -> bool:
        """Whether there is anything that a client that was cut off could come back to."""
        return not self._error and self._state in (State.LIVE, State.ENDING)

    @property
    def marks(self) -> Marks:
        """How far the session has come."""
        return Marks(self._recorder.sent, self._recorder.answered, self._log.places)

    def checkpoint(self, since: Marks) -> tuple[bytes, tuple[Piece, ...]]:
        """The session as it is now: its small state, and what has been added to its records since those marks."""
        snapshot = Snapshot(
            session_id=self.id,
            model=self._info_name,
            opened_at=self._opened_at,
            core=self._core,
            sent=self._recorder.sent,
            answered=self._recorder.answered,
            tally=self._tally,
        )
        floor = max(0, self._log.places - self._settings.event_buffer)
        return checkpoint.dump(snapshot, self.model.name), (
            checkpoint.audio_piece(self._recorder, since.sent),
            checkpoint.heard_piece(self._recorder, since.answered),
            checkpoint.events_piece(self._log.since(since.events), since.events, floor, self._log.places),
        )

    async def close(self) -> None:
        """Give the slot back and stop. Idempotent; safe in any state."""
        self._is_closed = True
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._has_model:
            await self._stream.close()

    # ------------------------------------------------------------------ for the stream (DurableListener)

    def on_result(self, result: FrameResult) -> None:
        """The next frame's result."""
        self._emit(self._core.hear(result))
        if (illness := self._recovery.heard(result)) and self._stream.restart(RESTART_FRAMES):
            _log.warning("decoder restarts", session_id=self.id, reason=illness, frame=result.frame)
            self._metrics.restarts_total.labels(illness).inc()

    def on_state(self, state: durable_stream.State) -> None:
        """The stream moves, has moved, or is parked."""
        self._tally.moves += state == "live"
        self._emit([Status(state)])

    def on_failed(self, error: SpeechError) -> None:
        """The stream could not be kept alive."""
        self._fail(error)

    # ------------------------------------------------------------------ inside

    def _use_model(self, restored: Restored | None) -> None:
        model = self.model
        info = model.engines.info
        self._info_name = info.name
        self._recorder = restored.recorder if restored else Recorder(info, self._settings.window_frames)
        self._core = restored.snapshot.core if restored else SessionCore(info, model.settings, self._settings)
        self._arrivals = Arrivals(self._core.client_samples)
        self._recovery = Recovery(model.settings)
        self._stream = DurableStream(
            self.id, model.engines, self._settings, self._metrics, self, self._recorder, model.returning
        )
        self._has_model = True

    @property
    def _state(self) -> State:
        if self._is_closed:
            return State.OVER
        if not self._is_open:
            return State.NEW
        return State.ENDING if self._core.ended else State.LIVE

    def _require(self, state: State) -> None:
        if self._error:
            raise self._error
        if (state, self._state) == (State.LIVE, State.ENDING):
            raise InvalidMessage("expected nothing after the end of the audio, got more: open another session for it")
        if self._state is not state:
            raise InvalidMessage(f"expected a session that is {state.value}, this one is {self._state.value}")

    def _begin(self) -> None:
        self._is_open = True
        self._last_audio_at = time.monotonic()
        self._watch = asyncio.create_task(self._watch_deadlines(), name=f"session-{self.id}-deadlines")

    async def _send_outgoing(self) -> int:
        """Send what is queued; how many frames. What a cancellation leaves is sent by the next call."""
        self._feeding = True
        frames = 0
        try:
            while (outgoing := self._core.outgoing) is not None:
                # A reader that lags holds the feeder back long before the event log is full.
                await self._log.wait_until_half_read()
                if self._error:
                    raise self._error
                if isinstance(outgoing, np.ndarray):
                    sent = await self._stream.send_some(outgoing)
                    self._recovery.sent(outgoing[:sent])
                    self._core.sent(sent)
                    frames += sent
                else:
                    self._emit(self._core.pass_event())
        finally:
            self._feeding = False
            self._last_audio_at = time.monotonic()  # waiting for room is not idling
        return frames

    def _emit(self, events: Sequence[Event]) -> None:
        try:
            for event in events:
                self._log.append(event, numbered=not isinstance(event, Status | Frame))
                self._count(event)
        except SlowClient as error:
            self._fail(error)

    def _count(self, event: Event) -> None:
        match event:
            case Token():
                self._metrics.tokens_total.inc()
                if self._tally.first_token_s is None and self._first_audio_at is not None:
                    self._tally.first_token_s = time.monotonic() - self._first_audio_at
                    self._metrics.first_token_seconds.observe(self._tally.first_token_s)
            case Word():
                self._tally.words += 1
                self._metrics.words_total.inc()
            case TurnEnd():
                self._metrics.turns_total.inc()
            case Done() | Failure():
                # Before the client hears of it: who connects again at once finds the slot free.
                self._stream.finish()

    def _note_told(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case Token():
                if (said_at := self._log.read_added_at) is not None:
                    self._metrics.socket_seconds.observe(now - said_at)
            case Word(end_s=end):
                if (arrived_at := self._arrivals.at(end)) is not None:
                    self._word_delays_s.append(now - arrived_at)
                    self._metrics.word_delay_seconds.observe(now - arrived_at)

    def _fail(self, error: SpeechError) -> None:
        self._error = self._error or error
        self._log.fail(self._error)

    async def _watch_deadlines(self) -> None:
        """Fail the session at the first deadline that passes; give its slot up while nobody speaks."""
        settings = self._settings
        while not self._error:
            time_left = self._opened_at + settings.max_session_seconds - time.time()
            waiting = self._state is State.LIVE and not self._feeding
            idle_s = time.monotonic() - self._last_audio_at if waiting else 0.0
            if time_left <= 0:
                self._fail(SessionTooLong(f"expected a session of at most {settings.max_session_seconds:g} s"))
                return
            if idle_s >= settings.idle_audio_timeout_seconds:
                self._fail(IdleTimeout(f"expected audio, got none for {settings.idle_audio_timeout_seconds:g} s"))
                return
            if idle_s >= settings.park_after_seconds:
                self._stream.park()
            self._stream.check()
            # The idle deadline moves all the time: look again when it may be due, and at least every second.
            idle_in = settings.idle_audio_timeout_seconds - idle_s
            await asyncio.sleep(min(1.0, max(0.05, time_left), max(0.05, idle_in)))
