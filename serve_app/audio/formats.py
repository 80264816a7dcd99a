"""What a client declares about the audio it streams: `?format=s16&sample_rate=16000&channels=2`."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.errors import InvalidMessage, shown
from serve_app.speech import SAMPLE_RATE_HZ

SAMPLE_BYTES = {"f32": 4, "s16": 2, "mulaw": 1, "alaw": 1}
"""Bytes of one sample of each raw format: little-endian float32, little-endian 16-bit integers, G.711 mu-law, A-law."""

OPUS = "opus"
"""The format that brings its own rate and channels: Opus in Ogg."""

FORMATS = (*SAMPLE_BYTES, OPUS)
SAMPLE_RATES_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
MAX_CHANNELS = 2

TELEPHONE_RATE_HZ = 8_000
"""What mu-law and A-law mean where no rate is given: the rate that G.711 fixes."""


@dataclass(frozen=True)
class AudioFormat:
    """A validated format. Opus says its own rate and channels in its header, so those two mean nothing for it."""

    encoding: str = "f32"
    """One of `FORMATS`."""
    sample_rate_hz: int = SAMPLE_RATE_HZ
    """One of `SAMPLE_RATES_HZ`."""
    channels: int = 1
    """1, or 2: interleaved, left first; they are averaged."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel; 0 for Opus, where there is no such thing."""
        return SAMPLE_BYTES.get(self.encoding, 0) * self.channels

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second of audio; 0 for Opus."""
        return self.frame_bytes * self.sample_rate_hz

    @property
    def query(self) -> str:
        """The query parameters that declare this format."""
        channels = f"&channels={self.channels}" if self.channels > 1 else ""
        return f"?format={self.encoding}&sample_rate={self.sample_rate_hz}{channels}"


def parse_audio_format(query: Mapping[str, str]) -> AudioFormat:
    """Read `format`, `sample_rate` and `channels` from query parameters.

    What is missing is f32, mono, at 24,000 Hz (mu-law and A-law: 8,000 Hz). Raises InvalidMessage, naming the
    parameter, what was expected and what came.
    """
    encoding = query.get("format", "f32")
    if encoding not in FORMATS:
        raise InvalidMessage(f"?format=: expected one of {', '.join(FORMATS)}, got {shown(encoding)}")
    default_rate_hz = TELEPHONE_RATE_HZ if encoding in ("mulaw", "alaw") else SAMPLE_RATE_HZ
    return AudioFormat(
        encoding,
        _choice(query, "sample_rate", SAMPLE_RATES_HZ, default_rate_hz),
        _choice(query, "channels", tuple(range(1, MAX_CHANNELS + 1)), 1),
    )


def _choice(query: Mapping[str, str], name: str, choices: tuple[int, ...], default: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    by_text = {str(choice): choice for choice in choices}
    if value not in by_text:
        raise InvalidMessage(f"?{name}=: expected one of {', '.join(by_text)}, got {shown(value)}")
    return by_text[value]
