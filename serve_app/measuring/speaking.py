"""One session as a speaker holds it, at the pace of speech, and what came of it.

The pace is a plan: chunk k, 80 ms of audio, leaves at (k + 1) * 80 ms / rtf, whatever happens. Every delay is counted
from that plan, as a person who speaks would count. How late this program itself woke up for a chunk is kept apart: it
is the generator's fault, not the server's.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from serve_app import client
from serve_app.client import Format
from serve_app.client.encoding import FORMATS
from serve_app.client.sending import stop_sending
from serve_app.measuring import dialects
from serve_app.measuring.dialects import WIRES
from serve_app.measuring.hearing import Hearing, compare
from serve_app.samples import Clip
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE_HZ

STREAM = "stream"
"""The dialect that `serve_app.client` speaks: /v1/stream."""

DIALECTS = (STREAM, *WIRES)

PATIENCE_S = 60.0
"""How much longer than its audio a session may take."""

LONGEST_REASON = 200

Conversation: TypeAlias = client.Stream | dialects.Conversation


class InvalidManner(Exception):
    """The dialect cannot be spoken like that."""


@dataclass(frozen=True)
class Manner:
    """How sessions speak."""

    url: str
    dialect: str = STREAM
    format: Format | None = None
    """How the audio travels; None for what the dialect's clients do."""
    model: str | None = None
    """The name to ask for, in dialects that can."""
    rtf: float = 1.0
    """Speed: 1 is real time."""
    most_wer: float = 0.0
    """Word error rate above which a session counts as failed."""
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sample_rate: int = SAMPLE_RATE_HZ
    """At which the audio travels over /v1/stream; other dialects have one rate."""

    def __post_init__(self) -> None:
        """Raises `InvalidManner`."""
        if self.dialect not in DIALECTS:
            raise InvalidManner(f"dialect: expected one of {', '.join(DIALECTS)}, got {self.dialect!r}")
        formats = FORMATS if self.dialect == STREAM else WIRES[self.dialect].formats
        if self.format is None:
            object.__setattr__(self, "format", formats[0])
        elif self.format not in formats:
            raise InvalidManner(f"format: expected {' or '.join(formats)} with {self.dialect}, got {self.format!r}")
        if not self.rtf > 0:
            raise InvalidManner(f"rtf: expected more than 0, got {self.rtf:g}")


@dataclass
class Outcome:
    """What came of a session, as plain data. Times of day are `time.time()`, everything else is in seconds."""

    clip: str
    audio_s: float
    ended_at: float = 0.0
    session_s: float = 0.0
    connect_s: float | None = None
    """Until the connection was open."""
    ready_s: float | None = None
    """From then until the server listened; None in dialects in which it does not say so."""
    first_token_s: float | None = None
    """From the start of the first word in the audio to the first text."""
    word_delays: list[tuple[float, float]] = field(default_factory=list)
    """Of each word heard right: when it came (time of day), and how long after its end in the audio."""
    flush_s: float | None = None
    """From a flush to `flushed`: every second session flushes before its end."""
    end_s: float | None = None
    """From the end to `done`, of a session that has not flushed."""
    late_s: list[float] = field(default_factory=list)
    """How late the generator woke up for each chunk of 80 ms."""
    words: int = 0
    """In the reference."""
    word_errors: int = 0
    failure: str | None = None
    """Why the session counts as failed."""


async def speak(clip: Clip, manner: Manner, flush: bool = False) -> Outcome:
    """Hold one session, as `hold` does. Never raises but for a cancellation: `Outcome.failure` says what went wrong."""
    outcome = Outcome(clip.file, clip.seconds)
    began = time.monotonic()
    try:
        await hold(clip, manner, outcome, Hearing(), flush)
    except (client.ClientError, TimeoutError) as error:
        outcome.failure = reason(error)
    outcome.session_s, outcome.ended_at = time.monotonic() - began, time.time()
    return outcome


def reason(error: client.ClientError | TimeoutError) -> str:
    """Why a session failed, in a line."""
    match error:
        case client.ServerError(code=code, message=message):
            return f"{code}: {message}"[:LONGEST_REASON]
        case TimeoutError():
            return f"not over {PATIENCE_S:g} s after its audio"
    return f"{type(error).__name__}: {error}"[:LONGEST_REASON]


async def hold(clip: Clip, manner: Manner, outcome: Outcome, hearing: Hearing, flush: bool = False) -> None:
    """Say a clip to the service; `outcome` and `hearing` are filled while it goes on.

    Raises `ClientError`, and `TimeoutError` for a session that does not end.
    """
    async with asyncio.timeout(clip.seconds / manner.rtf + PATIENCE_S):
        asked = time.monotonic()
        async with _connect(manner) as conversation:
            opened = time.monotonic()
            outcome.connect_s = opened - asked
            if manner.dialect == STREAM or WIRES[manner.dialect].announces_ready:
                while not isinstance(await anext(conversation), client.Ready):
                    pass
                outcome.ready_s = time.monotonic() - opened
            session = _Session(conversation, clip, manner.rtf, outcome, hearing)
            sending = asyncio.create_task(session.send(flush))
            try:
                await session.listen()
            finally:
                await stop_sending(sending)
            session.judge(manner.most_wer)


def _connect(manner: Manner) -> AbstractAsyncContextManager[Conversation]:
    access: dict[str, Any] = {"api_key": manner.api_key, "headers": manner.headers}
    format = manner.format or FORMATS[0]
    if manner.dialect == STREAM:
        return client.connect(manner.url, words=True, format=format, sample_rate=manner.sample_rate, **access)
    return dialects.connect(manner.url, lambda: WIRES[manner.dialect](format, manner.model), **access)


class _Session:
    """The talking part of a session."""

    def __init__(self, conversation: Conversation, clip: Clip, rtf: float, outcome: Outcome, hearing: Hearing) -> None:
        self._conversation = conversation
        self._clip = clip
        self._rtf = rtf
        self._outcome = outcome
        self._hearing = hearing
        self._origin = time.monotonic()
        self._flushed = asyncio.Event()
        self._ended_at = 0.0

    async def send(self, flush: bool) -> None:
        """Send everything by the plan, then flush or not, and end."""
        samples, free_since = self._clip.samples, self._origin
        for number, start in enumerate(range(0, len(samples), FRAME_SAMPLES), 1):
            due = max(self._origin + number * FRAME_SECONDS / self._rtf, free_since)
            await asyncio.sleep(due - time.monotonic())
            self._outcome.late_s.append(max(0.0, time.monotonic() - due))
            await self._conversation.send(samples[start : start + FRAME_SAMPLES])
            free_since = time.monotonic()
        if flush and isinstance(self._conversation, client.Stream):
            asked = time.monotonic()
            await self._conversation.flush()
            await self._flushed.wait()
            self._outcome.flush_s = time.monotonic() - asked
        self._ended_at = time.monotonic()
        await self._conversation.end()

    async def listen(self) -> None:
        """Take everything that comes, up to `done`."""
        async for event in self._conversation:
            now = time.monotonic()
            match event:
                case client.Token(text=text):
                    self._hearing.add_text(text, now - self._origin)
                case client.Word(start=start, end=end):
                    self._hearing.add_place(start, end)
                case client.Flushed():
                    self._flushed.set()
                case client.Done() if self._outcome.flush_s is None and self._ended_at:
                    self._outcome.end_s = now - self._ended_at

    def judge(self, most_wer: float) -> None:
        """Hold what came against what was said."""
        compared = compare(self._clip.words, self._hearing, self._rtf)
        began_at = time.time() - (time.monotonic() - self._origin)
        self._outcome.first_token_s = compared.first_token_s
        self._outcome.word_delays = [(began_at + word.at_s, word.delay_s) for word in compared.word_delays]
        self._outcome.words, self._outcome.word_errors = compared.words, compared.errors
        if not self._ended_at:
            self._outcome.failure = "the server was done before the audio was"
        elif compared.words and compared.errors > most_wer * compared.words:
            self._outcome.failure = f"wrong words: {self._clip.file}"
