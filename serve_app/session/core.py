"""What a session makes of audio, flushes and results: frames to send and events to tell. No task, no clock, no network.

All of it is plain data that can be pickled, so that a session can go on in another process (see `checkpoint`).
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.pcm import Framer
from serve_app.errors import InvalidMessage, SpeechError
from serve_app.session.timeline import Timeline
from serve_app.settings import ModelSettings, SessionSettings
from serve_app.speech import FRAME_SAMPLES, FRAMES_PER_SECOND, SAMPLE_RATE_HZ, FrameResult, ModelInfo
from serve_app.transcript import Event as TranscriptEvent
from serve_app.transcript import Transcript


@dataclass(frozen=True)
class Flushed:
    """Everything that was said before the flush is out."""


@dataclass(frozen=True)
class Status:
    """Where the session is: on its way to another engine, back in a slot, or without one until audio comes."""

    state: Literal["migrating", "live", "parked"]


@dataclass(frozen=True)
class Frame:
    """A frame has been through the model; told only where `SessionCore.tells_frames` asks for it."""

    index: int
    """From 0, not counting the silence that the model wants before the first sample."""
    heard_s: float
    """How much of the client's audio the model has heard with it, in seconds."""
    pauses: tuple[float, ...]
    """Probability of a pause of 0.5, 1, 2 and 3 s; empty where the checkpoint has no pause heads."""
    waiting_samples: int
    """Audio that the client has sent and the model has not heard yet."""
    settled_s: float
    """No word that follows ends before this, in seconds of the client's audio."""


@dataclass(frozen=True)
class Marked:
    """A client's mark is reached; see `SessionCore.take_mark`."""

    mark: int | None


@dataclass(frozen=True)
class Done:
    """The session is over and everything that was said is out."""

    audio_seconds: float
    """Duration of the audio that the client sent."""


@dataclass(frozen=True)
class Failure:
    """The client made a mistake that ends the session; everything that was said before it is out."""

    error: SpeechError


Event: TypeAlias = TranscriptEvent | Flushed | Status | Frame | Marked | Done | Failure

MOST_MARKS = 256
"""Marks that may wait at once: unlike audio, nothing else slows a client down that sends more and more of them."""


class SessionCore:
    """See the module's docstring.

    The caller sends what `outgoing` shows, and reports with `sent`, `pass_event` and `hear`.
    """

    def __init__(self, info: ModelInfo, model: ModelSettings, settings: SessionSettings) -> None:
        self._window_frames = settings.window_frames
        self._delay_frames = info.delay_frames
        self._prefix_frames = info.silence_prefix_frames
        self._flush_frames = info.delay_frames + round(settings.flush_silence_seconds * FRAMES_PER_SECOND)
        self._framer = Framer()
        self._timeline = Timeline()
        self._transcript = Transcript(info, model.pause_head, model.pause_threshold, self._timeline)
        self._queued_frames = 0  # frames made so far: sent, or waiting in `_outgoing`
        self._flushed_frames = 0  # of those, the ones up to the last flush
        self._sent = 0
        self._answered = 0
        self._outgoing: deque[NDArray[np.float32] | Event] = deque()  # frames to send, and what to say behind them
        self._awaiting: deque[tuple[int, Event]] = deque()  # what to say once so many frames are answered
        self._marks: deque[tuple[int, Marked]] = deque()  # likewise, with the model's delay in the number
        self.tells_frames = False
        """Whether there is a `Frame` for each result: most clients have no use for 12.5 events a second."""
        self.client_samples = 0
        """Samples taken from the client so far."""
        self.flushes = 0
        """Flushes taken from the client so far."""
        self.ended = False
        """Whether the client has said that no more audio comes."""
        self._queue_silence(info.silence_prefix_frames)

    # ------------------------------------------------------------------ from the client

    def take_audio(self, samples: NDArray[np.float32]) -> None:
        """Audio, float32 [n] at 24 kHz."""
        self.client_samples += len(samples)
        self._queue(self._framer.push(samples))

    def take_flush(self) -> None:
        """Bring out everything said so far, then say `Flushed`."""
        self.flushes += 1
        self._queue_until_words_are_out()
        self._outgoing.append(Flushed())

    def take_end(self) -> None:
        """Bring out the rest, then say `Done`."""
        self.ended = True
        self._queue_until_words_are_out()
        self._outgoing.append(Done(self.audio_seconds))

    def take_mistake(self, error: SpeechError) -> None:
        """Bring out the rest, then say `Failure`, also where `Done` was going to come."""
        self.ended = True
        self._queue_until_words_are_out()
        self._outgoing = deque(item for item in self._outgoing if not isinstance(item, Done))
        self._awaiting = deque(event for event in self._awaiting if not isinstance(event[1], Done))
        self._outgoing.append(Failure(error))

    def take_mark(self, mark: int | None, *, delayed: bool) -> list[Event]:
        """Say `Marked` once the model has heard every whole frame so far, and with `delayed` its delay more.

        Unlike a flush it adds no silence: the client's own audio has to bring the mark out. Returns what is due now.
        """
        if len(self._marks) >= MOST_MARKS:
            raise InvalidMessage(f"expected at most {MOST_MARKS} marks to wait for audio, got one more")
        self._marks.append((self._queued_frames + delayed * self._delay_frames, Marked(mark)))
        return self._marks_due()

    @property
    def is_over(self) -> bool:
        """Whether the end was said and everything is out."""
        return self.ended and not self._outgoing and not self._awaiting

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio that the client has sent so far."""
        return self.client_samples / SAMPLE_RATE_HZ

    # ------------------------------------------------------------------ to and from the engine

    @property
    def outgoing(self) -> NDArray[np.float32] | Event | None:
        """What comes next: frames to send, float32 [n, FRAME_SAMPLES], an event to pass, or nothing."""
        return self._outgoing[0] if self._outgoing else None

    def sent(self, frames: int) -> None:
        """The first `frames` of the outgoing ones were sent."""
        first = self._outgoing.popleft()
        assert isinstance(first, np.ndarray), "events are passed, not sent"
        if frames < len(first):
            self._outgoing.appendleft(first[frames:])
        self._sent += frames

    def pass_event(self) -> list[Event]:
        """Take the outgoing event: it is due behind the results of all frames sent. Returns what is due now."""
        event = self._outgoing.popleft()
        assert not isinstance(event, np.ndarray), "frames are sent, not passed"
        self._awaiting.append((self._sent, event))
        return self._due()

    def hear(self, result: FrameResult) -> list[Event]:
        """Take the next frame's result and return what it brings, in order."""
        self._answered += 1
        frame = self._frame(result) if self.tells_frames and result.frame >= self._prefix_frames else None
        return [*([frame] if frame else []), *self._transcript.add(result), *self._marks_due(), *self._due()]

    # ------------------------------------------------------------------ inside

    def _frame(self, result: FrameResult) -> Frame:
        heard_s = self._timeline((result.frame + 1) / FRAMES_PER_SECOND)
        waiting = max(0, self.client_samples - round(heard_s * SAMPLE_RATE_HZ))
        return Frame(result.frame - self._prefix_frames, heard_s, result.pauses, waiting, self._transcript.settled_s)

    def _marks_due(self) -> list[Event]:
        events: list[Event] = []
        while self._marks and self._marks[0][0] <= self._answered:
            events.append(self._marks.popleft()[1])
        return events

    def _due(self) -> list[Event]:
        events: list[Event] = []
        while self._awaiting and self._awaiting[0][0] <= self._answered:
            events.extend(self._transcript.finish(self.audio_seconds))
            events.append(self._awaiting.popleft()[1])
        return events

    def _queue(self, frames: NDArray[np.float32]) -> None:
        window = self._window_frames
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
            self._queue_silence(self._flush_frames)
        self._flushed_frames = self._queued_frames
