"""What clients of `WS /v1/realtime` send: parsed and checked. Fields that have no effect here are passed over."""

from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from serve_app.audio.formats import AudioFormat
from serve_app.errors import SHOWN_CHARACTERS, shown
from serve_app.protocols.openai.errors import InvalidParameter

PCM16 = AudioFormat("s16")
"""What clients send that say nothing: 24 kHz."""

_ENCODINGS = {
    "audio/pcm": "s16", "pcm16": "s16",
    "audio/pcmu": "mulaw", "g711_ulaw": "mulaw",
    "audio/pcma": "alaw", "g711_alaw": "alaw",
}  # fmt: skip
_DEFAULT_RATES_HZ = {"s16": 24_000, "mulaw": 8_000, "alaw": 8_000}


@dataclass(frozen=True)
class Configuration:
    """What a client can set; the names are those of `Update.changes`."""

    model: str
    """The name by which the client knows the model."""
    audio_format: AudioFormat = PCM16
    turn_detection: str | None = "server_vad"
    """What the client calls it: it is always the model's pause head that ends a turn, or nothing does."""
    language: str | None = None
    """Has no effect."""


class _Fields(BaseModel):
    """A part of an event. OpenAI adds fields all the time, so unknown ones are no mistake."""

    model_config = ConfigDict(extra="ignore", strict=True)

    def has(self, name: str) -> bool:
        """Whether the client has sent the field."""
        return name in self.model_fields_set


class _Format(_Fields):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: Literal[8_000, 16_000, 22_050, 24_000, 44_100, 48_000] | None = None


class _Transcription(_Fields):
    model: str | None = Field(default=None, max_length=SHOWN_CHARACTERS)
    language: str | None = Field(default=None, max_length=SHOWN_CHARACTERS)


class _TurnDetection(_Fields):
    type: Literal["server_vad", "semantic_vad"] = "server_vad"


class _Input(_Fields):
    format: _Format | None = None
    transcription: _Transcription | None = None
    turn_detection: _TurnDetection | None = None


class _Audio(_Fields):
    input: _Input = _Input()


class _Session(_Fields):
    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()


class _OldSession(_Fields):
    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] | None = None
    input_audio_transcription: _Transcription | None = None
    turn_detection: _TurnDetection | None = None


class Update(_Fields):
    """`session.update` of a transcription session."""

    type: Literal["session.update"]
    session: _Session

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes of a `Configuration`."""
        given = self.session.audio.input
        kind, rate = (given.format.type, given.format.rate) if given.format else (None, None)
        return _changes(kind, rate, given.transcription, given)


class OldUpdate(_Fields):
    """`transcription_session.update`, as it was called in the beta."""

    type: Literal["transcription_session.update"]
    session: _OldSession

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes of a `Configuration`."""
        given = self.session
        return _changes(given.input_audio_format, None, given.input_audio_transcription, given)


class Append(_Fields):
    """`input_audio_buffer.append`."""

    type: Literal["input_audio_buffer.append"]
    audio: str

    @property
    def data(self) -> bytes:
        """The audio. Raises InvalidParameter where it is not base64."""
        try:
            return b64decode(self.audio, validate=True)
        except ValueError as error:
            raise InvalidParameter("audio", f"audio: expected base64, got something else: {error}") from None


class Commit(_Fields):
    """`input_audio_buffer.commit`."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Fields):
    """`input_audio_buffer.clear`."""

    type: Literal["input_audio_buffer.clear"]


ClientEvent: TypeAlias = Update | OldUpdate | Append | Commit | Clear

_EVENT: TypeAdapter[ClientEvent] = TypeAdapter(Annotated[ClientEvent, Field(discriminator="type")])


def read_fields(message: str | bytes) -> dict[str, Any]:
    """The JSON object in a message. Raises InvalidParameter."""
    try:
        fields = from_json(message) if isinstance(message, str) else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidParameter(None, f"expected a JSON object, got {shown(message)}", "invalid_json")
    return fields


def parse_event(fields: dict[str, Any]) -> ClientEvent:
    """The event in a JSON object. Raises InvalidParameter, naming the first field that is wrong."""
    try:
        return _EVENT.validate_python(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"].startswith("union_tag"):
        kinds = ", ".join(
            f"'{kind}'" for each in (Update, OldUpdate, Append, Commit, Clear) for kind in _kinds(each)
        )  # fmt: skip
        raise InvalidParameter("type", f"type: expected one of {kinds}, got {shown(fields.get('type'))}")
    param = ".".join(str(part) for part in problem["loc"][1:])
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    raise InvalidParameter(param, f"{param}: {problem['msg']}, got {shown(problem['input'])}", code)


def _kinds(event: type[_Fields]) -> tuple[str, ...]:
    kinds: tuple[str, ...] = event.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
    return kinds


def _changes(
    kind: str | None, rate_hz: int | None, transcription: _Transcription | None, given: _Input | _OldSession
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if kind:
        encoding = _ENCODINGS[kind]
        changes["audio_format"] = AudioFormat(encoding, rate_hz or _DEFAULT_RATES_HZ[encoding])
    if transcription and transcription.model:
        changes["model"] = transcription.model
    if transcription and transcription.has("language"):
        changes["language"] = transcription.language
    if given.has("turn_detection"):
        changes["turn_detection"] = given.turn_detection.type if given.turn_detection else None
    return changes
