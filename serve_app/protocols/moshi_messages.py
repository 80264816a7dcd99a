"""The messages of Kyutai's moshi-server: msgpack maps tagged by `type`.

    client -> server:  Audio {pcm}, OggOpus {data}, Marker {id}, Init
    server -> client:  Ready, Step {step_idx, prs, buffered_pcm}, Word {text, start_time}, EndWord {stop_time},
                       Marker {id}, Error {message}

The client is not trusted: what `decode` returns can be used as it is. Fields that it does not know it passes over.
"""

import contextlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np

from serve_app.errors import SHOWN_CHARACTERS, InvalidMessage, shown

_LARGEST_ID = 2**63


@dataclass(frozen=True)
class Audio:
    """Samples at 24 kHz, any number of them."""

    data: bytes
    """Little-endian float32."""


@dataclass(frozen=True)
class OggOpus:
    """A piece of an Ogg/Opus stream."""

    data: bytes


@dataclass(frozen=True)
class Marker:
    """To be sent back when everything before it has been transcribed."""

    id: int


@dataclass(frozen=True)
class Init:
    """Begin."""


Incoming: TypeAlias = Audio | OggOpus | Marker | Init


def encode(kind: str, **fields: object) -> bytes:
    """A message of this type."""
    return bytes(msgpack.packb({"type": kind, **fields}))


def decode(data: bytes) -> Incoming:
    """Read a client's message. Raises InvalidMessage, saying what was expected and what came."""
    try:
        message = msgpack.unpackb(
            data, object_hook=_only_one("map"), list_hook=_only_one("list"), ext_hook=_no_extension
        )
    # Hostile lengths, keys that cannot be keys, timestamps out of range and broken UTF-8 all end here.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidMessage(
            f"expected a msgpack map, got {len(data)} bytes that are none ({str(error)[:SHOWN_CHARACTERS]})"
        ) from None
    kind = message.get("type") if isinstance(message, dict) else None
    match kind:
        case "Audio":
            return Audio(_samples(message.get("pcm")))
        case "OggOpus":
            return OggOpus(_octets(message.get("data")))
        case "Marker":
            return Marker(_id(message.get("id")))
        case "Init":
            return Init()
    got = f"one of type {_shown(kind)}" if isinstance(message, dict) else _shown(message)
    raise InvalidMessage(f"expected a msgpack map of type Audio, OggOpus, Marker or Init, got {got}")


def _only_one(kind: str) -> Callable[[Any], Any]:
    """A message is one map with at most one list: millions of empty ones would hold everybody up."""
    seen: list[Any] = []

    def hook(value: Any) -> Any:
        if seen:
            raise ValueError(f"more than one {kind}")
        seen.append(value)
        return value

    return hook


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension type, {code}")


def _samples(pcm: Any) -> bytes:
    with contextlib.suppress(TypeError):
        if isinstance(pcm, list):
            return np.array(array("f", pcm), "<f4").tobytes()  # unlike NumPy, `array` takes numbers alone, and stops
    raise InvalidMessage(f"Audio.pcm: expected a list of numbers and nothing else, got {_shown(pcm)}")


def _octets(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    with contextlib.suppress(ValueError, TypeError):
        if isinstance(data, list):  # how Rust's plain Vec<u8> travels
            return bytes(data)
    raise InvalidMessage(f"OggOpus.data: expected bytes, got {_shown(data)}")


def _id(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value < _LARGEST_ID:
        return value
    raise InvalidMessage(f"Marker.id: expected a 64-bit integer, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A list may be as long, and as deep, as its sender likes."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return shown(value)
