"""The audio in a chunk: decoded, checked against what the chunk says of it, at its own sample rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.containers import HEAD_BYTES, recognise
from serve_app.audio.encodings import to_float32
from serve_app.audio.formats import SAMPLE_BYTES
from serve_app.audio.plausibility import check_samples
from serve_app.audio.upload import decode_native
from serve_app.bridges.messages import AudioChunk, UnreadableChunk
from serve_app.errors import AudioTooLong, InvalidAudio
from serve_app.speech import SAMPLE_RATE_HZ

LENIENCE_SECONDS = 0.25
LENIENCE_SHARE = 0.05
"""How far a chunk's `duration_seconds` may be from the truth: encoders add silence. Beyond it the sample rate lies."""


@dataclass(frozen=True)
class Sound:
    """Mono audio at its own sample rate, so that chunks can be resampled without a seam."""

    samples: NDArray[np.float32]
    rate_hz: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate_hz


def decode_chunk(chunk: AudioChunk, max_seconds: float) -> Sound:
    """The chunk's audio; no samples where it has none. Raises UnreadableChunk."""
    try:
        sound = _raw(chunk, max_seconds) if chunk.format in SAMPLE_BYTES else _file(chunk, max_seconds)
    except (InvalidAudio, AudioTooLong) as error:
        raise UnreadableChunk(f"audio_data: {error.message}") from None
    declared = chunk.duration_seconds
    if declared is not None and abs(sound.seconds - declared) > LENIENCE_SECONDS + LENIENCE_SHARE * declared:
        raise UnreadableChunk(
            f"duration_seconds: expected {sound.seconds:.2f} s, as long as the audio is at {sound.rate_hz} Hz,"
            f" got {declared:g} s: is the sample rate right?"
        )
    return sound


def _raw(chunk: AudioChunk, max_seconds: float) -> Sound:
    if chunk.sample_rate is None:
        raise UnreadableChunk(f"sample_rate: expected a number of Hz with the format {chunk.format}, got none")
    data, width = chunk.audio_data, SAMPLE_BYTES[chunk.format]
    if len(data) % width:
        raise InvalidAudio(f"expected a multiple of {width} bytes, got {len(data)}")
    if len(data) > max_seconds * chunk.sample_rate * width:
        raise AudioTooLong(f"expected at most {max_seconds:g} s of audio, got more")
    if file := recognise(data[:HEAD_BYTES]):
        raise InvalidAudio(f"expected raw {chunk.format} samples, got {file.name}")
    samples = to_float32(chunk.format, data)
    check_samples(samples, data, 0)
    return Sound(samples, chunk.sample_rate)


def _file(chunk: AudioChunk, max_seconds: float) -> Sound:
    if not chunk.audio_data:
        return Sound(np.zeros(0, np.float32), chunk.sample_rate or SAMPLE_RATE_HZ)
    parts, rate_hz = [], 0
    for samples, rate in decode_native(chunk.audio_data, max_seconds):
        if rate_hz not in (0, rate):
            raise InvalidAudio(f"expected one sample rate, got {rate_hz} and then {rate} Hz")
        parts.append(samples)
        rate_hz = rate
    return Sound(np.concatenate([np.zeros(0, np.float32), *parts]), rate_hz or chunk.sample_rate or SAMPLE_RATE_HZ)
