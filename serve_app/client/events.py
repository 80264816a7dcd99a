"""What the server says, one class per type of message. Pure: text in, typed events out."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serve_app.client.errors import ProtocolViolation


class _Message(BaseModel):
    """Common rules: events do not change, and a newer server may say more than we know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Received(_Message):
    """What the server has taken of a session that is resumed."""

    samples: int
    flushes: int
    end: bool


class Ready(_Message):
    """The session has its slot; the server listens."""

    type: Literal["ready"] = "ready"
    session_id: str
    model: str
    resume_token: str | None = None
    """What takes the session up again after a broken connection; None from a server that cannot."""
    received: Received | None = None


class _Numbered(_Message):
    """Common to what the session says: the event's number, for a client that has to say what it has seen."""

    seq: int | None = None
    """None from a server that does not count."""


class Token(_Numbered):
    """A piece of text, as soon as the model has it; pieces that start a word start with a space."""

    type: Literal["token"] = "token"
    text: str


class Word(_Numbered):
    """A whole word, once its end is known; `start` and `end` are seconds from the session's first sample."""

    type: Literal["word"] = "word"
    text: str
    start: float
    end: float
    confidence: float | None = None
    """Mean probability of the word's tokens, where it was asked for."""


class TurnEnd(_Numbered):
    """The speaker has paused: a turn is over."""

    type: Literal["vad_end"] = "vad_end"


class Pauses(_Message):
    """How likely a frame of 80 ms begins a pause, from a checkpoint with pause heads.

    It has no number: after a broken connection a few may be missing, or come again.
    """

    type: Literal["pauses"] = "pauses"
    time: float
    """Seconds of audio heard; it stands still at a flush, where silence is put in."""
    probabilities: tuple[float, ...]
    """Of pauses of 0.5, 1, 2 and 3 s."""


class Settled(_Message):
    """No word that follows ends before `time`, in seconds from the session's first sample. It has no number."""

    type: Literal["settled"] = "settled"
    time: float


class Flushed(_Numbered):
    """Everything said before the flush is out."""

    type: Literal["flushed"] = "flushed"


class Done(_Numbered):
    """The session is over; `audio_seconds` is how much audio the server heard."""

    type: Literal["done"] = "done"
    audio_seconds: float


class Status(_Message):
    """The session waits for a slot, moves to another engine, is live again, or is parked until audio comes."""

    type: Literal["status"] = "status"
    state: str
    """`waiting`, `migrating`, `live` or `parked`."""
    place: int | None = None
    """Place in line, from 1, of a session that waits."""


class Ping(_Message):
    """A sign of life; the stream keeps it to itself."""

    type: Literal["ping"] = "ping"


class Failure(_Message):
    """An error that ends the session; the stream raises it as `ServerError`."""

    type: Literal["error"] = "error"
    code: str = "unknown"
    message: str = "no reason given"
    retry_after_s: float | None = None


class Unknown(_Message):
    """A message of a type this client does not know, from a newer server; harmless."""

    type: str
    fields: dict[str, Any] = Field(default_factory=dict)
    """Everything the message said besides its type."""


Event = Ready | Token | Word | TurnEnd | Pauses | Settled | Flushed | Status | Done | Unknown
"""What a stream yields."""

_Known = Ready | Token | Word | TurnEnd | Pauses | Settled | Flushed | Status | Done | Ping | Failure
_known: TypeAdapter[_Known] = TypeAdapter(Annotated[_Known, Field(discriminator="type")])
_TYPES = frozenset(
    {"ready", "token", "word", "vad_end", "pauses", "settled", "flushed", "status", "done", "ping", "error"}
)


def parse(message: str | bytes) -> Event | Ping | Failure:
    """Read one message. Raises `ProtocolViolation` where it is not JSON, has no type, or lacks what its type needs."""
    if isinstance(message, bytes):
        raise ProtocolViolation(f"expected a JSON message, got {len(message)} bytes of binary data")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        raise ProtocolViolation(f"expected a JSON message, got {_shortened(message)}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise ProtocolViolation(f"expected a JSON object with a type, got {_shortened(message)}")
    if fields["type"] not in _TYPES:
        return Unknown(type=fields.pop("type"), fields=fields)
    try:
        return _known.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise ProtocolViolation(f"message {_shortened(message)}: {place}: {first['msg']}") from None


def _shortened(message: str, limit: int = 120) -> str:
    return repr(message if len(message) <= limit else message[:limit] + "…")
