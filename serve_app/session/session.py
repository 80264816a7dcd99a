"""One conversation: audio in, transcript events out, from `open` to `close`.

Knows no wire format and no Ray. One task feeds it, another one reads `events`. Both may be cancelled at any time and
others take their place, for a client that was cut off and comes back: nothing that was taken is lost. `close` gives the
engine's slot back whatever has happened.
"""

import asyncio
import enum
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.pcm import Framer
from serve_app.errors import IdleTimeout, InvalidMessage, SessionTooLong, SlowClient, SpeechError
from serve_app.session import durable_stream
from serve_app.session.durable_stream import DurableStream
from serve_app.session.engines import Engines
from serve_app.session.event_log import EventLog
from serve_app.session.timeline import Timeline
from serve_app.settings import ModelSettings, SessionSettings
from serve_app.speech import FRAME_SAMPLES, FRAMES_PER_SECOND, SAMPLE_RATE_HZ, FrameResult
from serve_app.telemetry import IngressMetrics
from serve_app.transcript import Event as TranscriptEvent
from serve_app.transcript import Token, Transcript, TurnEnd, Word


@dataclass(frozen=True)
class Flushed:
    """Everything that was said before the flush is out."""


@dataclass(frozen=True)
class Status:
    """Where the session is: on its way to another engine, back in a slot, or without one until audio comes."""

    state: durable_stream.State


@dataclass(frozen=True)
class Done:
    """The session is over and everything that was said is out."""

    audio_seconds: float
    """Duration of the audio that the client sent."""


Event: TypeAlias = TranscriptEvent | Flushed | Status | Done


class State(enum.Enum):
    """The states of a session; each call names those it is allowed in."""

    NEW = "new"
    LIVE = "live"
    ENDING = "ending"
    OVER = "over"


class Session:
    """See the module's docstring. All methods run in one event loop; one feeder and one reader at a time."""

    def __init__(
        self,
        session_id: str,
        engines: Engines,
        settings: SessionSettings,
        model: ModelSettings,
        metrics: IngressMetrics,
    ) -> None:
        self.id = session_id
        self._settings = settings
        self._model = model
        self._metrics = metrics
        self._stream = DurableStream(session_id, engines, settings, metrics, listener=self)
        self._state = State.NEW
        self._error: SpeechError | None = None

        self._framer = Framer()
        self._timeline = Timeline()
        self._client_samples = 0
        self._first_audio_at: float | None = None
        self._has_spoken = False
        self._queued_frames = 0  # frames made so far: sent, or waiting in `_outgoing`
        self._flushed_frames = 0  # of those, the ones up to the last flush
        self._flushes = 0
        self._outgoing: deque[NDArray[np.float32] | Event] = deque()  # frames to send, and what to say behind them
        self._markers: deque[tuple[int, Event]] = deque()
        self._log: EventLog[Event] = EventLog(settings.event_buffer)

        self._opened_at = self._last_audio_at = time.monotonic()
        self._feeding = False
        self._has_client = True
        self._watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ for the feeder

    async def open(self) -> None:
        """Take a slot. Raises ModelNotReady, AtCapacity or EngineLost."""
        self._require(State.NEW)
        asked_at = time.monotonic()
        self._info = await self._stream.open()
        self._transcript = Transcript(
            self._info, self._model.pause_head, self._model.pause_threshold, self._timeline.to_client_seconds
        )
        self._state = State.LIVE
        self._opened_at = self._last_audio_at = time.monotonic()
        self._metrics.admission_seconds.observe(self._opened_at - asked_at)
        self._watch = asyncio.create_task(self._watch_deadlines(), name=f"session-{self.id}-deadlines")
        self._queue_silence(self._info.silence_prefix_frames)
        await self._send_outgoing()

    async def feed(self, samples: NDArray[np.float32]) -> None:
        """Take audio, float32 [n] at 24 kHz; waits while the engine is a window behind (backpressure)."""
        self._require(State.LIVE)
        self._first_audio_at = self._first_audio_at or time.monotonic()
        self._client_samples += len(samples)
        self._queue(self._framer.push(samples))
        await self._send_outgoing()

    async def flush(self) -> None:
        """Bring out everything said so far, then a Flushed event; the session goes on."""
        self._require(State.LIVE)
        self._flushes += 1
        self._queue_until_words_are_out()
        self._outgoing.append(Flushed())
        await self._send_outgoing()

    async def end(self) -> None:
        """Bring out the rest, then a Done event; no more audio is taken. Saying it twice is no mistake."""
        if self._state is State.ENDING and not self._error:
            return
        self._require(State.LIVE)
        self._state = State.ENDING
        self._queue_until_words_are_out()
        self._outgoing.append(Done(self.audio_seconds))
        await self._send_outgoing()

    # ------------------------------------------------------------------ for a client that was cut off

    def detach(self) -> bool:
        """The client is gone; the slot is given up soon. False if there is nothing that it could come back to."""
        self._has_client = False
        return not self._error and self._state in (State.LIVE, State.ENDING) and self._client_samples > 0

    def check_resume(self, last_number: int) -> None:
        """The client is back and has seen the events up to this number.

        Raises InvalidMessage if events that it has not seen are no longer kept.
        """
        if not self._log.has_all_after(last_number):
            raise InvalidMessage(f"expected the number of a recent event, got {last_number}: cannot resume from there")
        self._has_client = True
        self._last_audio_at = time.monotonic()

    async def go_on(self) -> None:
        """Send what was taken from the client before it was cut off."""
        await self._send_outgoing()

    @property
    def received(self) -> tuple[int, int, bool]:
        """What has been taken from the client so far: samples, flushes, and whether the end."""
        return self._client_samples, self._flushes, self._state is State.ENDING

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio that the client has sent so far."""
        return self._client_samples / SAMPLE_RATE_HZ

    # ------------------------------------------------------------------ for the reader

    async def events(self, after: int | None = None) -> AsyncIterator[tuple[int, Event]]:
        """The session's events and their numbers, those not read yet or all after a number; ends after Done.

        Raises the error that ended the session, if one did.
        """
        async for number, event in self._log.read(after):
            yield number, event
            if isinstance(event, Done):
                return

    async def close(self) -> None:
        """Give the slot back and stop. Idempotent; safe in any state."""
        self._state = State.OVER
        if self._watch:
            self._watch.cancel()
        await self._stream.close()

    # ------------------------------------------------------------------ for the stream (DurableListener)

    def on_result(self, result: FrameResult) -> None:
        """The next frame's result."""
        for event in self._transcript.add(result):
            self._emit(event)
        self._pass_markers()

    def on_state(self, state: durable_stream.State) -> None:
        """The stream moves, has moved, or is parked."""
        self._emit(Status(state))

    def on_failed(self, error: SpeechError) -> None:
        """The stream could not be kept alive."""
        self._fail(error)

    # ------------------------------------------------------------------ inside

    def _require(self, state: State) -> None:
        if self._error:
            raise self._error
        if self._state is not state:
            raise InvalidMessage(f"expected a session that is {state.value}, this one is {self._state.value}")

    def _queue(self, frames: NDArray[np.float32]) -> None:
        window = self._settings.window_frames
        self._outgoing.extend(frames[start : start + window] for start in range(0, len(frames), window))
        self._queued_frames += len(frames)

    def _queue_silence(self, frames: int) -> None:
        self._timeline.insert(self._queued_frames * FRAME_SAMPLES, frames * FRAME_SAMPLES)
        self._queue(np.zeros((frames, FRAME_SAMPLES), dtype=np.float32))

    def _queue_until_words_are_out(self) -> None:
        """Complete the last frame, then queue silence for the model's delay and a little more."""
        last, padding = self._framer.pad()
        if last is not None:
            self._timeline.insert((self._queued_frames + 1) * FRAME_SAMPLES - padding, padding)
            self._queue(last[None])
        if self._queued_frames > self._flushed_frames:
            extra = round(self._settings.flush_silence_seconds * FRAMES_PER_SECOND)
            self._queue_silence(self._info.delay_frames + extra)
        self._flushed_frames = self._queued_frames

    async def _send_outgoing(self) -> None:
        """Send what is queued. What a cancellation leaves is sent by the next call."""
        self._feeding = True
        try:
            while self._outgoing:
                # A reader that lags holds the feeder back long before the event log is full.
                await self._log.wait_until_half_read()
                if self._error:
                    raise self._error
                match self._outgoing[0]:
                    case np.ndarray() as frames:
                        sent = await self._stream.send_some(frames)
                        self._outgoing.popleft()
                        if sent < len(frames):
                            self._outgoing.appendleft(frames[sent:])
                    case event:
                        self._outgoing.popleft()
                        self._markers.append((self._stream.sent, event))
                        self._pass_markers()
        finally:
            self._feeding = False
            self._last_audio_at = time.monotonic()  # waiting for room is not idling

    def _pass_markers(self) -> None:
        while self._markers and self._markers[0][0] <= self._stream.answered:
            for event in self._transcript.finish(self.audio_seconds):
                self._emit(event)
            self._emit(self._markers.popleft()[1])

    def _emit(self, event: Event) -> None:
        try:
            self._log.append(event, numbered=not isinstance(event, Status))
        except SlowClient as error:
            self._fail(error)
            return
        self._count(event)

    def _count(self, event: Event) -> None:
        match event:
            case Token():
                self._metrics.tokens_total.inc()
                if not self._has_spoken and self._first_audio_at is not None:
                    self._has_spoken = True
                    self._metrics.first_token_seconds.observe(time.monotonic() - self._first_audio_at)
            case Word():
                self._metrics.words_total.inc()
            case TurnEnd():
                self._metrics.turns_total.inc()

    def _fail(self, error: SpeechError) -> None:
        self._error = self._error or error
        self._log.fail(self._error)

    async def _watch_deadlines(self) -> None:
        """Fail the session at the first deadline that passes; give its slot up while nobody speaks."""
        settings = self._settings
        while not self._error:
            now = time.monotonic()
            too_long_at = self._opened_at + settings.max_session_seconds
            waiting = self._state is State.LIVE and not self._feeding
            idle_s = now - self._last_audio_at if waiting else 0.0
            if now >= too_long_at:
                self._fail(SessionTooLong(f"expected a session of at most {settings.max_session_seconds:g} s"))
                return
            if idle_s >= settings.idle_audio_timeout_seconds and self._has_client:
                self._fail(IdleTimeout(f"expected audio, got none for {settings.idle_audio_timeout_seconds:g} s"))
                return
            if not self._has_client or idle_s >= settings.park_after_seconds:
                await self._stream.park()
            self._stream.check()
            # The idle deadline moves all the time: look again when it may be due, and at least every second.
            idle_in = settings.idle_audio_timeout_seconds - idle_s
            await asyncio.sleep(min(1.0, max(0.05, too_long_at - now), max(0.05, idle_in)))
