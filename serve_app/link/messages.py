"""What travels on the link: msgpack maps tagged by `type`, arrays as raw little-endian columns.

    ingress -> engine:  attach, detach, frames, ping
    engine -> ingress:  attached, refused, results, failed, load

The peer is not trusted: `decode` checks every field of every message, so that what it returns can be used as it is.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgpack
import numpy as np
from numpy.typing import DTypeLike, NDArray

from serve_app.errors import shown
from serve_app.speech import FRAME_SAMPLES, MAX_AMPLITUDE, FrameResults

LENGTH_BYTES = 4
"""Each message is preceded by its length, unsigned, big-endian."""

SECRET_BYTES = 16
MAX_FIELD_CHARACTERS = 4_096


class LinkError(Exception):
    """The peer broke the link's rules; the message says what was expected and what came."""


class Grant(NamedTuple):
    """A lease's first and only item: where the stream is, and what opens it."""

    replica: str
    host: str
    port: int
    stream: int
    secret: bytes


class Refusal(NamedTuple):
    """A lease's first and only item when the engine has no room."""

    replica: str
    reason: str


@dataclass(frozen=True)
class Attach:
    """Take over a leased stream: from here on its results go to this connection."""

    stream: int
    secret: bytes


@dataclass(frozen=True)
class Detach:
    """The stream is over: its slot is free for the next one."""

    stream: int


@dataclass(frozen=True)
class Frames:
    """Audio frames, row i for stream `streams[i]`; several rows of one stream are in order."""

    streams: NDArray[np.int64]
    audio: NDArray[np.float32]


@dataclass(frozen=True)
class Ping:
    """The ingress is alive."""


@dataclass(frozen=True)
class Attached:
    """The stream is this connection's."""

    stream: int


@dataclass(frozen=True)
class Refused:
    """The stream is not, and will not be, this connection's: unknown, over, or the wrong secret."""

    stream: int


@dataclass(frozen=True)
class Failed:
    """These streams are over; no result of theirs follows."""

    streams: list[int]
    code: str
    message: str


@dataclass(frozen=True)
class LoadReport:
    """How busy the engine is; sent every heartbeat, so it also says that the engine is alive."""

    values: dict[str, float]


Message: TypeAlias = Attach | Detach | Frames | Ping | Attached | Refused | FrameResults | Failed | LoadReport


def encode(message: Message) -> bytes:
    """The message as it goes over the wire, length included."""
    match message:
        case Attach(stream, secret):
            fields: dict[str, Any] = {"type": "attach", "stream": stream, "secret": secret}
        case Detach(stream):
            fields = {"type": "detach", "stream": stream}
        case Frames(streams, audio):
            fields = {"type": "frames", "streams": _bytes(streams, "<i8"), "audio": _bytes(audio, "<f4")}
        case Ping():
            fields = {"type": "ping"}
        case Attached(stream):
            fields = {"type": "attached", "stream": stream}
        case Refused(stream):
            fields = {"type": "refused", "stream": stream}
        case FrameResults(streams, frames, tokens, codes, pauses, engine_seconds, probabilities):
            fields = {
                "type": "results",
                "streams": _bytes(streams, "<i8"),
                "frames": _bytes(frames, "<i4"),
                "tokens": _bytes(tokens, "<i4"),
                "codes": _bytes(codes, "<i2"),
                "pauses": _bytes(pauses, "<f4"),
                "engine_seconds": _bytes(engine_seconds, "<f4"),
                "probabilities": _bytes(probabilities, "<f4"),
            }
        case Failed(failed, code, text):
            fields = {"type": "failed", "streams": failed, "code": code, "message": text[:MAX_FIELD_CHARACTERS]}
        case LoadReport(values):
            fields = {"type": "load", "values": values}
    body: bytes = msgpack.packb(fields)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode(body: bytes) -> Message:
    """The message in `body` (without its length). Raises LinkError if it is not a valid one."""
    try:
        fields = msgpack.unpackb(body, max_map_len=64, max_array_len=65_536)
    except Exception as error:  # msgpack raises many kinds, ValueError and its own among them
        raise LinkError(f"expected a msgpack map, got {len(body)} bytes that are none: {error}") from None
    if not isinstance(fields, dict):
        raise LinkError(f"expected a msgpack map, got {type(fields).__name__}")
    match fields.get("type"):
        case "attach":
            secret = _field(fields, "secret", bytes)
            if len(secret) != SECRET_BYTES:
                raise LinkError(f"attach.secret: expected {SECRET_BYTES} bytes, got {len(secret)}")
            return Attach(_stream(fields), secret)
        case "detach":
            return Detach(_stream(fields))
        case "frames":
            streams = _column(fields, "streams", "<i8")
            return Frames(streams, _audio(_table(fields, "audio", "<f4", len(streams), FRAME_SAMPLES)))
        case "ping":
            return Ping()
        case "attached":
            return Attached(_stream(fields))
        case "refused":
            return Refused(_stream(fields))
        case "results":
            return _results(fields)
        case "failed":
            failed = _field(fields, "streams", list)
            if not all(type(stream) is int for stream in failed):
                raise LinkError("failed.streams: expected integers")
            return Failed(failed, _field(fields, "code", str), _field(fields, "message", str))
        case "load":
            values = _field(fields, "values", dict)
            if not all(isinstance(key, str) and _is_number(value) for key, value in values.items()):
                raise LinkError("load.values: expected finite numbers by name")
            return LoadReport(values)
        case other:
            raise LinkError(f"expected a known message type, got {shown(other)}")


def _results(fields: dict[str, Any]) -> FrameResults:
    streams = _column(fields, "streams", "<i8")
    rows = len(streams)
    frames, tokens = _column(fields, "frames", "<i4"), _column(fields, "tokens", "<i4")
    if not len(frames) == len(tokens) == rows:
        raise LinkError(f"results: expected {rows} rows, got {len(frames)} frames and {len(tokens)} tokens")
    if not (tokens >= 0).all():
        raise LinkError("results.tokens: expected numbers from 0 on")
    codes, pauses = _table(fields, "codes", "<i2", rows), _table(fields, "pauses", "<f4", rows)
    if not ((pauses >= 0) & (pauses <= 1)).all():
        raise LinkError("results.pauses: expected numbers from 0 to 1")
    engine_seconds = _table(fields, "engine_seconds", "<f4", rows, 1)[:, 0]
    if not np.isfinite(engine_seconds).all():
        raise LinkError("results.engine_seconds: expected finite numbers")
    probabilities = _table(fields, "probabilities", "<f4", rows, 1)[:, 0]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise LinkError("results.probabilities: expected numbers from 0 to 1")
    return FrameResults(streams, frames, tokens, codes, pauses, engine_seconds, probabilities)


def _audio(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """The ingress lets no such samples through; from a peer that lies they would stay in a slot's caches."""
    # A comparison with NaN is false, so this finds NaN too.
    if not (np.abs(frames) <= MAX_AMPLITUDE).all():
        raise LinkError(f"frames.audio: expected samples of at most {MAX_AMPLITUDE:g}, got louder ones or NaN")
    return frames


def _is_number(value: object) -> bool:
    """Whether it is a number that JSON and Prometheus can say."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise LinkError(f"{fields['type']}.{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _stream(fields: dict[str, Any]) -> int:
    stream = _field(fields, "stream", int)
    if not 0 <= stream < 1 << 63:
        raise LinkError(f"{fields['type']}.stream: expected 0 to 2^63 - 1, got {stream}")
    return int(stream)


def _column(fields: dict[str, Any], name: str, dtype: DTypeLike) -> NDArray[Any]:
    data, size = _field(fields, name, bytes), np.dtype(dtype).itemsize
    if len(data) % size:
        raise LinkError(f"{fields['type']}.{name}: expected a multiple of {size} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=dtype)


def _table(fields: dict[str, Any], name: str, dtype: DTypeLike, rows: int, width: int | None = None) -> NDArray[Any]:
    """A [rows, width] array; without `width`, as wide as the bytes allow."""
    column = _column(fields, name, dtype)
    if width is None:
        width = len(column) // rows if rows else 0
    if len(column) != rows * width:
        raise LinkError(f"{fields['type']}.{name}: expected {rows} rows of {width}, got {len(column)} values")
    return column.reshape(rows, width)
