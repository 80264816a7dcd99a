"""How the dialects on WebSockets are spoken that our own client does not speak: one small class each.

A wire makes messages of audio and reads what comes back; `live.py` sends and receives.
"""

import base64
import json
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.encodings import to_float32
from serve_app.audio.resampler import Resampler
from serve_app.client.encoding import make_encoder
from serve_app.client.errors import ServerError
from serve_app.smoke.heard import Unexpected
from serve_app.speech import SAMPLE_RATE_HZ

Message: TypeAlias = str | bytes

MULAW_RATE_HZ = 16_000

MARKER_SILENCE_S = 5
"""What follows moshi-server's Marker and brings it out: more than any model's delay."""

_MULAW_LEVELS = to_float32("mulaw", bytes(range(256)))


class Wire(Protocol):
    """One dialect, for one connection. What it has no messages for it leaves as it is here."""

    path: ClassVar[str]
    query: ClassVar[dict[str, str]] = {}
    last: ClassVar[str | None] = None
    """What the end of the transcript is called; None where the server just closes."""

    def opening(self) -> list[Message]:
        """What is sent before any audio."""
        return []

    def audio(self, samples: NDArray[np.float32]) -> Message:
        """A piece of audio, float32 [n] at 24 kHz; may be empty."""

    def closing(self) -> list[Message]:
        """What says that no more audio comes."""

    def text(self, message: Message) -> str:
        """What a message adds to the transcript. Raises `ServerError` for an error."""

    def is_last(self, message: Message) -> bool:
        """Whether nothing follows."""
        return False


class _MuLaw(Wire):
    """`/v1/stream` in telephones' encoding, yet not at their rate: at 8 kHz the demo model hears "three" for "six"."""

    path = "/v1/stream"
    query: ClassVar[dict[str, str]] = {"format": "mulaw", "sample_rate": str(MULAW_RATE_HZ)}
    last = "done"

    def __init__(self) -> None:
        self._resampler = Resampler(SAMPLE_RATE_HZ, MULAW_RATE_HZ)

    def audio(self, samples: NDArray[np.float32]) -> Message:
        return _mulaw(self._resampler.push(samples))

    def closing(self) -> list[Message]:
        return [_mulaw(self._resampler.finish()), json.dumps({"type": "end"})]

    def text(self, message: Message) -> str:
        match fields := _fields(message):
            case {"type": "error", "code": code, "message": reason}:
                raise ServerError(code, reason, fields.get("retry_after_s"))
            case {"type": "token", "text": text}:
                return str(text)
        return ""

    def is_last(self, message: Message) -> bool:
        return _fields(message).get("type") == "done"


class _Transcribe(Wire):
    """`/v1/transcribe`."""

    path = "/v1/transcribe"
    last = '"status": "complete"'

    def __init__(self) -> None:
        self._encoder = make_encoder("s16", SAMPLE_RATE_HZ)

    def audio(self, samples: NDArray[np.float32]) -> Message:
        return self._encoder.encode(samples)

    def closing(self) -> list[Message]:
        return [b"EOS"]

    def text(self, message: Message) -> str:
        match fields := _fields(message):
            case {"status": "error", "code": code, "message": reason}:
                raise ServerError(code, reason)
        return str(fields.get("text", ""))

    def is_last(self, message: Message) -> bool:
        return _fields(message).get("status") == "complete"


class _TaggedText(Wire):
    """`/ws`."""

    path = "/ws"

    def __init__(self) -> None:
        self._encoder = make_encoder("opus", SAMPLE_RATE_HZ)

    def audio(self, samples: NDArray[np.float32]) -> Message:
        return self._encoder.encode(samples)

    def closing(self) -> list[Message]:
        return [self._encoder.finish(), "EOS"]

    def text(self, message: Message) -> str:
        if isinstance(message, str) or message[:1] != b"\x01":
            raise Unexpected(f"expected 0x01 and text, got {message[:80]!r}")
        return message[1:].decode()


class _Moshi(Wire):
    """moshi-server's. Its Error has no code, but the close frame that follows has."""

    path = "/api/asr-streaming"
    last = "Marker"

    def audio(self, samples: NDArray[np.float32]) -> Message:
        return bytes(msgpack.packb({"type": "Audio", "pcm": samples.tolist()}, use_single_float=True))

    def closing(self) -> list[Message]:
        second = self.audio(np.zeros(SAMPLE_RATE_HZ, np.float32))
        return [bytes(msgpack.packb({"type": "Marker", "id": 1})), *[second] * MARKER_SILENCE_S]

    def text(self, message: Message) -> str:
        fields = self._unpacked(message)
        return f" {fields['text']}" if fields.get("type") == "Word" else ""

    def is_last(self, message: Message) -> bool:
        return bool(self._unpacked(message).get("type") == "Marker")

    @staticmethod
    def _unpacked(message: Message) -> dict[str, Any]:
        fields = msgpack.unpackb(message) if isinstance(message, bytes) else None
        if not isinstance(fields, dict):
            raise Unexpected(f"expected a msgpack map, got {message[:80]!r}")
        return fields


class _Realtime(Wire):
    """OpenAI's; the client commits."""

    path = "/v1/realtime"
    query: ClassVar[dict[str, str]] = {"intent": "transcription"}
    last = "conversation.item.input_audio_transcription.completed"

    def __init__(self) -> None:
        self._encoder = make_encoder("s16", SAMPLE_RATE_HZ)

    def opening(self) -> list[Message]:
        session = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        return [json.dumps({"type": "session.update", "session": session})]

    def audio(self, samples: NDArray[np.float32]) -> Message:
        piece = base64.b64encode(self._encoder.encode(samples)).decode()
        return json.dumps({"type": "input_audio_buffer.append", "audio": piece})

    def closing(self) -> list[Message]:
        return [json.dumps({"type": "input_audio_buffer.commit"})]

    def text(self, message: Message) -> str:
        match fields := _fields(message):
            case {"type": "error", "error": {"code": code, "message": reason}}:
                raise ServerError(code, reason)
            case {"type": "conversation.item.input_audio_transcription.delta"}:
                return str(fields.get("delta", ""))
        return ""

    def is_last(self, message: Message) -> bool:
        return _fields(message).get("type") == self.last


WIRES: dict[str, Callable[[], Wire]] = {
    "WS /v1/stream mulaw 16 kHz": _MuLaw,
    "WS /v1/transcribe": _Transcribe,
    "WS /ws": _TaggedText,
    "WS /api/asr-streaming": _Moshi,
    "WS /v1/realtime": _Realtime,
}
"""What makes a wire, by the dialect's name."""


def _mulaw(samples: NDArray[np.float32]) -> bytes:
    """float32 [n] as the nearest of mu-law's levels."""
    return np.abs(samples[:, None] - _MULAW_LEVELS).argmin(axis=1).astype(np.uint8).tobytes()


def _fields(message: Message) -> dict[str, Any]:
    try:
        fields = json.loads(message) if isinstance(message, str) else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise Unexpected(f"expected a JSON object, got {message[:80]!r}")
    return fields
