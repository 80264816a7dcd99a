"""What is on the topics: audio chunks in, transcripts out. The names are those of the earlier Kafka service."""

import base64
import binascii
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EncodedBytes,
    EncoderProtocol,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

ChunkFormat = Literal["wav", "s16", "f32", "opus", "mp3"]
"""How a chunk's audio is encoded: each chunk is a whole WAV, Ogg/Opus or MP3 file, or raw little-endian samples."""

SHOWN_CHARACTERS = 200
"""How much of what was wrong a reason repeats."""


class UnreadableChunk(ValueError):
    """A message that is no audio chunk; the text says what was expected and what came, and can be shown to people."""


class _StrictBase64(EncoderProtocol):
    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise PydanticCustomError("base64", "expected base64: {error}", {"error": str(error)}) from None

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        return "base64"


def _in_utc(moment: datetime) -> datetime:
    """A time without a zone is taken for UTC. Years 1 and 9999 are left out, so that seconds can be added."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    if not 2 <= moment.year <= 9998:
        raise PydanticCustomError("year", "expected a year from 2 to 9998, got {year}", {"year": moment.year})
    return moment.astimezone(UTC)


def _lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Base64 = Annotated[bytes, EncodedBytes(encoder=_StrictBase64)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


class AudioChunk(_Message):
    """A piece of a device's audio, on the input topic under the key `device_id`. Unknown keys are left alone."""

    device_id: Name
    """Whose audio it is; chunks of one device continue one stream."""
    recorded_at: Moment
    """When the chunk's first sample was recorded."""
    audio_data: Base64
    """The audio, as `format` says."""
    sample_rate: int | None = Field(default=None, ge=1_000, le=768_000)
    """Samples per second. Raw formats need it; files say it themselves, and win."""
    format: Annotated[ChunkFormat, BeforeValidator(_lower_case)] = "wav"
    """See `ChunkFormat`."""
    duration_seconds: float | None = Field(default=None, ge=0)
    """How long the audio is; where given, audio of another length is refused."""
    chunk_id: Name
    """Names the chunk, once and for all: what comes again with it is not transcribed again."""
    sequence_number: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """Place among the device's chunks. Without one, chunks are taken in the order in which they come."""


class TranscribedWord(_Message):
    """A word that ends in the chunk."""

    word: str
    start_time: float
    """Seconds from the chunk's first sample; negative where the word began in the chunk before."""
    end_time: float
    """Seconds from the chunk's first sample."""
    confidence: float | None = Field(ge=0, le=1)
    """The probability that the model gave the word's tokens, on average; null from a service that does not tell it."""
    start_at: datetime
    """The start as a time: `recorded_at` and `start_time`."""
    end_at: datetime
    """The end as a time: `recorded_at` and `end_time`."""


class ChunkTranscript(_Message):
    """What was said in a chunk, on the output topic under the key `device_id`."""

    device_id: str
    recorded_at: datetime
    """As in the chunk, in UTC."""
    chunk_id: str
    words: tuple[TranscribedWord, ...]
    """Those that end in the chunk, in order."""
    full_text: str
    """The words with spaces between them."""
    language: str
    """What the settings say: the models do not tell which language they hear."""
    processing_time_ms: float
    """From the chunk's arrival at the bridge until its words were complete."""
    model_version: str


def read_chunk(value: bytes | None) -> AudioChunk:
    """The chunk in a message's value. Raises UnreadableChunk."""
    if value is None:
        raise UnreadableChunk("expected a JSON object, got a message without a value")
    try:
        return AudioChunk.model_validate_json(value)
    except ValidationError as error:
        problems = [_described(problem) for problem in error.errors(include_url=False)]
        raise UnreadableChunk("; ".join(problems)[: 5 * SHOWN_CHARACTERS]) from None


def _described(problem: Any) -> str:
    """One of pydantic's errors, without the audio that it may hold."""
    place = ".".join(map(str, problem["loc"]))
    got = problem["input"]
    shown = ""
    if isinstance(got, str | bool | int) or (isinstance(got, float) and math.isfinite(got)):
        text = repr(got)
        shown = f", got {text if len(text) <= SHOWN_CHARACTERS else text[:40] + '…'}"
    return f"{place + ': ' if place else ''}{problem['msg']}{shown}"
