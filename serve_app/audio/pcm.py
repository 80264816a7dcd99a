"""Raw audio: bytes of little-endian float32 samples, and frames cut from samples. Vectorised and bounded."""

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import InvalidAudio
from serve_app.speech import FRAME_SAMPLES, MAX_AMPLITUDE

SAMPLE_BYTES = 4
"""Bytes of one float32 sample."""


class Float32Decoder:
    """Little-endian float32 samples from chunks of any size; a sample may be split over chunks."""

    def __init__(self) -> None:
        self._rest = b""  # 0 to 3 bytes of a sample that is not complete.
        self._samples = 0

    def feed(self, data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
        """Return the samples that are complete now, float32 [n].

        Raises InvalidAudio for NaN, infinite or absurdly large samples, naming the first by its index in the stream.
        """
        data = b"".join((self._rest, data))
        whole = len(data) - len(data) % SAMPLE_BYTES
        self._rest = data[whole:]
        samples = np.frombuffer(data, dtype="<f4", count=whole // SAMPLE_BYTES).astype(np.float32)
        _check(samples, self._samples)
        self._samples += len(samples)
        return samples

    def finish(self) -> None:
        """Say that no more bytes come. Raises InvalidAudio if the last sample is incomplete."""
        if self._rest:
            raise InvalidAudio(f"expected a multiple of {SAMPLE_BYTES} bytes, got {len(self._rest)} trailing")


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


def _check(samples: NDArray[np.float32], first: int) -> None:
    """Raise InvalidAudio if these samples, of which the first has the index `first`, are no audio."""
    valid = np.abs(samples) <= MAX_AMPLITUDE  # False for NaN as well.
    if valid.all():
        return
    bad = int(np.argmin(valid))
    value = float(samples[bad])
    looks_like = (
        "integers that were not scaled to -1 ... 1"
        if np.isfinite(value) and abs(value) <= 2**31
        else "another format sent as float32, such as 16-bit PCM"
    )
    raise InvalidAudio(
        f"expected finite float32 samples between -1 and 1, got {value:g} at sample {first + bad}: "
        f"this looks like {looks_like}"
    )
