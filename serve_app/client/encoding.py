"""How samples travel to the service: as they are, in half the bytes (s16), a quarter (mulaw), or compressed (opus)."""

from typing import Literal, Protocol, TypeAlias, get_args

import av
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.encodings import to_mulaw
from serve_app.audio.formats import SAMPLE_RATES_HZ
from serve_app.audio.resampler import Resampler
from serve_app.speech import SAMPLE_RATE_HZ

Format: TypeAlias = Literal["f32", "s16", "mulaw", "opus"]

FORMATS: tuple[Format, ...] = get_args(Format)

OPUS_BITS_PER_SECOND = 32_000
"""Clear speech; a twenty-fourth of f32."""

OPUS_PAGE_MICROSECONDS = 20_000
"""One packet to a page: nothing waits for the next one."""


class Encoder(Protocol):
    """Samples to the bytes of one connection; after a reconnection a new one begins a new stream."""

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        """Take samples, float32 [n] at 24 kHz; the bytes that are ready."""

    def finish(self) -> bytes:
        """Say that no more samples come: the rest."""


def check_format(format: Format, sample_rate: int) -> None:
    """Raises `ValueError` for what no encoder makes."""
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    rates = (SAMPLE_RATE_HZ,) if format == "opus" else SAMPLE_RATES_HZ
    if sample_rate not in rates:
        expected = " or ".join(map(str, rates))
        raise ValueError(f"sample_rate: expected {expected} with {format}, got {sample_rate}")


def make_encoder(format: Format, sample_rate: int) -> Encoder:
    """An encoder for a new connection."""
    return _OpusEncoder() if format == "opus" else _PcmEncoder(format, sample_rate)


def declaration(format: Format, sample_rate: int) -> dict[str, str]:
    """What tells the server; nothing for what it expects anyway."""
    declared: dict[str, str] = {} if format == "f32" else {"format": format}
    is_expected = sample_rate == SAMPLE_RATE_HZ and format != "mulaw"  # which means telephones' rate
    return declared if is_expected else {**declared, "sample_rate": str(sample_rate)}


class _PcmEncoder:
    def __init__(self, format: Format, sample_rate: int) -> None:
        self._format = format
        self._resampler = Resampler(SAMPLE_RATE_HZ, sample_rate)

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        if self._format != "f32":
            _check_finite(samples)
        return self._bytes(self._resampler.push(samples))

    def finish(self) -> bytes:
        return self._bytes(self._resampler.finish())

    def _bytes(self, samples: NDArray[np.float32]) -> bytes:
        match self._format:
            case "s16":
                return np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()
            case "mulaw":
                return to_mulaw(samples)
        return samples.astype("<f4", copy=False).tobytes()


class _OpusEncoder:
    """Ogg/Opus by FFmpeg, which takes pieces of any size and keeps the stream's exact length."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._container: av.container.OutputContainer | None = None
        self._samples = 0

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        if not len(samples):
            return b""
        _check_finite(samples)
        if self._container is None:
            # By itself the muxer makes pages of a second, and keeps 32 KiB of them back.
            options = {"page_duration": str(OPUS_PAGE_MICROSECONDS), "flush_packets": "1"}
            self._container = av.open(self._sink, "w", format="ogg", options=options)
            self._stream = self._container.add_stream("libopus", rate=SAMPLE_RATE_HZ, layout="mono")
            self._stream.bit_rate = OPUS_BITS_PER_SECOND
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._samples
        self._samples += len(samples)
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        return self._sink.take()


def _check_finite(samples: NDArray[np.float32]) -> None:
    """What else would become noise; in f32 the server says what is wrong."""
    if not np.isfinite(samples).all():
        raise ValueError("expected finite samples, got NaN or infinite ones")


class _Sink:
    """What the muxer writes to."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken
