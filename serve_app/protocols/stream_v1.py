"""`WS /v1/stream`: audio in, JSON text messages out (the seeds' protocol, extended).

in, binary   PCM as ?format=&sample_rate=&channels= say (float32 little-endian, 24 kHz, mono) or Ogg/Opus, any pieces
in, text     {"type": "flush"}, {"type": "end"}, EOS (also as bytes)
out, text    ready, token, word (?words=true), pauses (?pauses=true), settled (?settled=true), vad_end, status, flushed,
             done, ping, error

?words=true                 word messages, too
?confidence=true            words with a `confidence`: the mean of the probabilities that the model gave their tokens
?settled=true               for each frame (80 ms) {"type": "settled", "time": 1.2}: no word that follows ends before
                            this. Without `seq`, as `pauses`
?pauses=true                for each frame (80 ms) how likely a pause of 0.5, 1, 2 and 3 s has begun:
                            {"type": "pauses", "time": 1.28, "probabilities": [0.9, 0.7, 0.4, 0.1]}, `time` being the
                            seconds of audio heard (it stands still at a flush, where silence is put in). They
                            carry no `seq`: after a resume a few may be missing, or come again. None of them if the
                            checkpoint has no pause heads
?model=NAME                 one of the models that are served, see `GET /v1/models`; without it the first one
?wait_s=30                  wait in line for a slot, at most so long
?resumable=true             "I resume": the service may ask me to move to another ingress (close code 1012)
?resume=TOKEN&last_seq=N    go on with a session, having seen its events up to number N
"""

import json
import math
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serve_app.audio.formats import parse_audio_format
from serve_app.audio.stream import AudioStream
from serve_app.errors import InvalidMessage, SpeechError, shown
from serve_app.protocols import audio_in
from serve_app.protocols.conversation import (
    END_OF_STREAM,
    Dialect,
    Message,
    Resume,
    Wishes,
    is_end,
)
from serve_app.protocols.query import number
from serve_app.session.core import Done, Event, Flushed, Frame, Status
from serve_app.session.session import Session
from serve_app.transcript import Token, TurnEnd, Word

MOST_EVENTS = 10**12
"""More than a session can have."""


class StreamV1(Dialect):
    """The dialect of `WS /v1/stream`, for one connection."""

    name = "stream"

    def __init__(self, query: QueryParams, longest_wait_s: float) -> None:
        """`query` is the connection's; see `check_request`. `longest_wait_s` limits its `wait_s`."""
        self._query = query
        self._words = self._confidence = self._pauses = self._settled = False
        self._resumes = False
        self._longest_wait_s = longest_wait_s

    def check_request(self) -> Wishes:
        """Read the query."""
        self._words, self._confidence, self._pauses, self._settled = (
            _flag(self._query, name) for name in ("words", "confidence", "pauses", "settled")
        )
        self._audio = AudioStream(parse_audio_format(self._query))
        token = self._query.get("resume")
        self._resumes = token is not None
        resume = Resume(token, int(number(self._query, "last_seq", MOST_EVENTS))) if token is not None else None
        return Wishes(
            resume,
            wait_s=number(self._query, "wait_s", self._longest_wait_s),
            can_move=_flag(self._query, "resumable"),
            can_resume=True,
            frames=self._pauses or self._settled,
            model=self._query.get("model"),
        )

    def waiting(self, place: int) -> Iterable[Message]:
        """`{"type": "status", "state": "waiting", "place": …}`: place in line for a slot, from 1."""
        yield _json("status", state="waiting", place=place)

    def ready(self, session: Session, resume_token: str | None) -> Iterable[Message]:
        """`{"type": "ready", "session_id": …, "model": …, "resume_token": …}`; `received` when it is resumed."""
        samples, flushes, ended = session.received
        received = {"received": {"samples": samples, "flushes": flushes, "end": ended}} if self._resumes else {}
        token = {"resume_token": resume_token} if resume_token else {}
        yield _json("ready", session_id=session.id, model=session.model.name, **token, **received)

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """One message for each event, words only where they were asked for; `seq` is the event's number."""
        match event:
            case Token(text=text):
                yield _json("token", text=text, seq=number)
            case Word(text=text, start_s=start, end_s=end, confidence=confidence):
                if self._words:
                    sure = {"confidence": round(confidence, 4)} if self._confidence else {}
                    yield _json("word", text=text, start=round(start, 3), end=round(end, 3), **sure, seq=number)
            case Frame(heard_s=heard, pauses=pauses, settled_s=settled):
                if pauses and self._pauses:
                    yield _json("pauses", time=round(heard, 3), probabilities=[round(pause, 4) for pause in pauses])
                if self._settled:
                    yield _json("settled", time=math.floor(settled * 1000) / 1000)
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
        if isinstance(message, bytes) and not is_end(message):
            await audio_in.feed(session, self._audio, message)
            return
        match _control(message):
            case "flush":
                await session.flush()
            case "end":
                await audio_in.end(session, self._audio)


def _control(message: Message) -> str:
    if is_end(message):
        return "end"
    try:
        control = json.loads(message)
    except (ValueError, RecursionError):
        control = None
    kind = control.get("type") if isinstance(control, dict) else None
    if kind not in ("flush", "end"):
        raise InvalidMessage(
            f'expected binary audio, {{"type": "flush"}}, {{"type": "end"}} or {END_OF_STREAM}, '
            f"got the text {shown(message)}"
        )
    return str(kind)


def _flag(query: QueryParams, name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidMessage(f"?{name}=: expected true or false, got {shown(value)}")
    return value in ("true", "1")


def _json(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)
