"""One conversation: audio in, transcript events out, from `open` to `close`.

Knows no wire format and no Ray. One task feeds it, another one reads `events`; both may be cancelled at any time, and
`close` gives the engine's slot back whatever has happened.
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
        self._flushed_frames = 0  # frames sent up to the last flush
        self._markers: deque[tuple[int, Event]] = deque()
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()  # for the reader: an event, or the session failed
        self._taken = asyncio.Event()  # for the feeder: an event was read, or the session failed

        self._opened_at = self._last_audio_at = time.monotonic()
        self._feeding = False
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
        await self._send_silence(self._info.silence_prefix_frames)

    async def feed(self, samples: NDArray[np.float32]) -> None:
        """Take audio, float32 [n] at 24 kHz; waits while the engine is a window behind (backpressure)."""
        self._require(State.LIVE)
        self._first_audio_at = self._first_audio_at or time.monotonic()
        self._client_samples += len(samples)
        self._feeding = True
        try:
            await self._send(self._framer.push(samples))
        finally:
            self._feeding = False
            self._last_audio_at = time.monotonic()  # waiting for room is not idling

    async def flush(self) -> None:
        """Bring out everything said so far, then a Flushed event; the session goes on."""
        self._require(State.LIVE)
        await self._send_until_words_are_out()
        self._mark(Flushed())

    async def end(self) -> None:
        """Bring out the rest, then a Done event; no more audio is taken."""
        self._require(State.LIVE)
        self._state = State.ENDING
        await self._send_until_words_are_out()
        self._mark(Done(self.audio_seconds))

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio that the client has sent so far."""
        return self._client_samples / SAMPLE_RATE_HZ

    # ------------------------------------------------------------------ for the reader

    async def events(self) -> AsyncIterator[Event]:
        """The session's events; ends after Done. Raises the error that ended the session, if one did."""
        while True:
            while self._events:
                event = self._events.popleft()
                self._taken.set()
                yield event
                if isinstance(event, Done):
                    return
            if self._error:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()

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

    async def _send(self, frames: NDArray[np.float32]) -> None:
        window = self._settings.window_frames
        for start in range(0, len(frames), window):
            await self._wait_for_reader()
            await self._stream.send(frames[start : start + window])

    async def _wait_for_reader(self) -> None:
        """A reader that lags holds the feeder back long before the event buffer overflows."""
        while not self._error and len(self._events) > self._settings.event_buffer // 2:
            self._taken.clear()
            await self._taken.wait()
        if self._error:
            raise self._error

    async def _send_until_words_are_out(self) -> None:
        """Complete the last frame, then send silence for the model's delay and a little more."""
        last, padding = self._framer.pad()
        if last is not None:
            self._timeline.insert((self._stream.sent + 1) * FRAME_SAMPLES - padding, padding)
            await self._send(last[None])
        if self._stream.sent > self._flushed_frames:
            extra = round(self._settings.flush_silence_seconds * FRAMES_PER_SECOND)
            await self._send_silence(self._info.delay_frames + extra)
        self._flushed_frames = self._stream.sent

    async def _send_silence(self, frames: int) -> None:
        self._timeline.insert(self._stream.sent * FRAME_SAMPLES, frames * FRAME_SAMPLES)
        await self._send(np.zeros((frames, FRAME_SAMPLES), dtype=np.float32))

    def _mark(self, event: Event) -> None:
        """Emit the event once every frame sent so far has its result."""
        self._markers.append((self._stream.sent, event))
        self._pass_markers()

    def _pass_markers(self) -> None:
        while self._markers and self._markers[0][0] <= self._stream.answered:
            for event in self._transcript.finish(self.audio_seconds):
                self._emit(event)
            self._emit(self._markers.popleft()[1])

    def _emit(self, event: Event) -> None:
        if len(self._events) >= self._settings.event_buffer:
            self._fail(SlowClient(f"expected the client to read its events, {len(self._events)} are waiting"))
            return
        self._events.append(event)
        self._arrived.set()
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
        self._arrived.set()
        self._taken.set()

    async def _watch_deadlines(self) -> None:
        """Fail the session at the first deadline that passes; give its slot up while nobody speaks."""
        settings = self._settings
        while not self._error:
            now = time.monotonic()
            too_long_at = self._opened_at + settings.max_session_seconds
            idle_s = 0.0 if self._feeding or self._state is not State.LIVE else now - self._last_audio_at
            if now >= too_long_at:
                self._fail(SessionTooLong(f"expected a session of at most {settings.max_session_seconds:g} s"))
                return
            if idle_s >= settings.idle_audio_timeout_seconds:
                self._fail(IdleTimeout(f"expected audio, got none for {settings.idle_audio_timeout_seconds:g} s"))
                return
            if idle_s >= settings.park_after_seconds:
                await self._stream.park()
            self._stream.check()
            # The idle deadline moves all the time: look again when it may be due, and at least every second.
            idle_in = settings.idle_audio_timeout_seconds - idle_s
            await asyncio.sleep(min(1.0, max(0.05, too_long_at - now), max(0.05, idle_in)))
