"""Raw audio: bytes of samples in, samples at 24 kHz and frames of them out. Vectorised and bounded."""

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.containers import HEAD_BYTES, WAV, recognise
from serve_app.audio.downmix import downmix
from serve_app.audio.encodings import to_float32
from serve_app.audio.formats import AudioFormat
from serve_app.audio.plausibility import PlausibilityCheck, check_samples
from serve_app.audio.resampler import Resampler
from serve_app.audio.wav_header import declared_by_wav
from serve_app.errors import InvalidAudio
from serve_app.speech import FRAME_SAMPLES

_WAV_HEADER_BYTES = 64
"""So much of a WAV file holds its format, in nearly all of them."""


class PcmDecoder:
    """Raw samples of any format, rate and number of channels as 24 kHz mono.

    Its state is a part of a sample and what waits in the resampler, so a new one may go on anywhere in a stream where a
    sample begins: the first few milliseconds then lack what came before them.
    """

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._resampler = Resampler(audio_format.sample_rate_hz)
        self._plausibility = PlausibilityCheck(audio_format)
        self._head: bytes | None = b""  # the stream's first bytes, while they may be a file's header
        self._rest = b""  # less than one sample of every channel, or what may become a WAV header
        self._samples = 0

    is_raw = True

    def feed(self, data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
        """Take bytes, a sample may be split over two calls; return what is ready, float32 [n] at 24 kHz.

        Raises InvalidAudio for NaN, infinite or absurdly large samples, naming the first by its index in the stream,
        and for what looks like a file or another format.
        """
        data = b"".join((self._rest, data))
        if self._head == b"" and len(data) < _WAV_HEADER_BYTES and b"RIFF".startswith(data[:4]):
            self._rest = data  # more of it says what kind of samples follow
            return np.zeros(0, dtype=np.float32)
        whole = len(data) - len(data) % self._format.frame_bytes
        self._rest = data[whole:]
        self._look_for_a_file(data[:whole])
        samples = self._decode(data[:whole])
        return self._resampler.push(samples)

    def finish(self) -> NDArray[np.float32]:
        """Say that no more bytes come; the rest, float32 [n] at 24 kHz.

        Raises InvalidAudio if the last sample is incomplete.
        """
        if trailing := len(self._rest) % self._format.frame_bytes:
            raise InvalidAudio(f"expected a multiple of {self._format.frame_bytes} bytes, got {trailing} trailing")
        last = self._resampler.push(self._decode(self._rest))
        self._rest = b""
        return np.concatenate((last, self._resampler.finish()))

    def _decode(self, data: bytes) -> NDArray[np.float32]:
        """Whole samples as float32 [n], mono, at the stream's own rate."""
        samples = to_float32(self._format.encoding, data)
        if self._format.encoding == "f32":
            check_samples(samples, data, self._samples)
        self._plausibility.check(data)
        self._samples += len(samples)
        return downmix(samples, self._format.channels)

    def _look_for_a_file(self, data: bytes) -> None:
        if self._head is None:
            return
        self._head += data[: HEAD_BYTES - len(self._head)]
        if file := recognise(self._head):
            how = f"what follows its header{declared_by_wav(self._head)}" if file is WAV else "decoded samples"
            raise InvalidAudio(
                f"expected raw {self._format.encoding} samples, got {file.name}: stream {how} or Ogg/Opus"
            )
        if len(self._head) == HEAD_BYTES:
            self._head = None


class Framer:
    """Cuts samples into frames; holds less than one frame."""

    def __init__(self) -> None:
        self._rest: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take samples, float32 [n], and return the frames that are full now, a new float32 [m, FRAME_SAMPLES]."""
        samples = np.concatenate((self._rest, samples), dtype=np.float32)
        whole = len(samples) - len(samples) % FRAME_SAMPLES
        self._rest = samples[whole:].copy()  # Not a view, or one sample would keep a whole upload alive.
        return samples[:whole].reshape(-1, FRAME_SAMPLES)

    def pad(self) -> tuple[NDArray[np.float32] | None, int]:
        """Complete a partial frame with silence.

        Returns the frame, float32 [FRAME_SAMPLES], and the number of silent samples in it; None and 0 if nothing waits.
        """
        waiting = len(self._rest)
        if not waiting:
            return None, 0
        frame = np.zeros(FRAME_SAMPLES, dtype=np.float32)
        frame[:waiting] = self._rest
        self._rest = self._rest[:0]
        return frame, FRAME_SAMPLES - waiting
