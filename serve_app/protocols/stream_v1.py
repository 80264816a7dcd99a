"""`WS /v1/stream`: audio in, JSON text messages out (the seeds' protocol, extended).

in, binary   PCM as ?format=&sample_rate=&channels= say (float32 little-endian, 24 kHz, mono) or Ogg/Opus, any pieces
in, text     {"type": "flush"}, {"type": "end"}, EOS (also as bytes)
out, text    ready, token, word (with ?words=true), vad_end, flushed, done, ping, error
"""

import json
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serve_app.audio.formats import parse_audio_format
from serve_app.audio.stream import AudioStream
from serve_app.errors import InvalidMessage, SpeechError
from serve_app.protocols.conversation import Message, Resume
from serve_app.session.session import Done, Event, Flushed, Session, Status
from serve_app.transcript import Token, TurnEnd, Word

END_OF_STREAM = "EOS"
MAX_DIGITS = 12
SHOWN_CHARACTERS = 80
"""How much of a wrong message an error repeats."""


class StreamV1:
    """The dialect of `WS /v1/stream`, for one connection."""

    def __init__(self, query: QueryParams, model: str) -> None:
        """`query` is the connection's; `words=true` asks for word messages, `format` and others declare the audio."""
        self._query = query
        self._words = False
        self._resumes = False
        self._model = model

    def check_request(self) -> Resume | None:
        """Read the query."""
        self._words = _flag(self._query, "words")
        self._audio = AudioStream(parse_audio_format(self._query))
        token, last_seq = self._query.get("resume"), self._query.get("last_seq", "0")
        if token is None:
            return None
        if not last_seq.isascii() or not last_seq.isdigit() or len(last_seq) > MAX_DIGITS:
            raise InvalidMessage(f"?last_seq=: expected the number of an event, got {last_seq[:SHOWN_CHARACTERS]!r}")
        self._resumes = True
        return Resume(token, int(last_seq))

    def ready(self, session: Session, resume_token: str) -> Iterable[Message]:
        """`{"type": "ready", "session_id": …, "model": …, "resume_token": …}`; `received` when it is resumed."""
        samples, flushes, ended = session.received
        received = {"received": {"samples": samples, "flushes": flushes, "end": ended}} if self._resumes else {}
        yield _json("ready", session_id=session.id, model=self._model, resume_token=resume_token, **received)

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """One message for each event, words only where they were asked for; `seq` is the event's number."""
        match event:
            case Token(text=text):
                yield _json("token", text=text, seq=number)
            case Word(text=text, start_s=start, end_s=end):
                if self._words:
                    yield _json("word", text=text, start=round(start, 3), end=round(end, 3), seq=number)
            case TurnEnd():
                yield _json("vad_end", seq=number)
            case Status(state=state):
                yield _json("status", state=state)
            case Flushed():
                yield _json("flushed", seq=number)
            case Done(audio_seconds=audio_seconds):
                yield _json("done", audio_seconds=round(audio_seconds, 3), seq=number)

    def error(self, error: SpeechError) -> Iterable[Message]:
        """`{"type": "error", "code": …, "message": …}`, with `retry_after_s` where trying again makes sense."""
        retry = {"retry_after_s": error.retry_after_s} if error.retry_after_s is not None else {}
        yield _json("error", code=error.code, message=error.message, **retry)

    def ping(self) -> Iterable[Message]:
        """`{"type": "ping"}`."""
        yield _json("ping")

    async def receive(self, session: Session, message: Message) -> None:
        """Audio, or a control message."""
        if isinstance(message, bytes) and message != END_OF_STREAM.encode():
            for samples in self._audio.feed(message):
                await session.feed(samples)
            return
        match _control(message):
            case "flush":
                await session.flush()
            case "end":
                if len(rest := self._audio.finish()):
                    await session.feed(rest)
                await session.end()


def _control(message: Message) -> str:
    if message in (END_OF_STREAM, END_OF_STREAM.encode()):
        return "end"
    shown = str(message)[:SHOWN_CHARACTERS]
    try:
        control = json.loads(message)
    except (ValueError, RecursionError):
        control = None
    kind = control.get("type") if isinstance(control, dict) else None
    if kind not in ("flush", "end"):
        raise InvalidMessage(
            f'expected binary audio, {{"type": "flush"}}, {{"type": "end"}} or {END_OF_STREAM}, got the text {shown!r}'
        )
    return str(kind)


def _flag(query: QueryParams, name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidMessage(f"?{name}=: expected true or false, got {value[:SHOWN_CHARACTERS]!r}")
    return value in ("true", "1")


def _json(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)
