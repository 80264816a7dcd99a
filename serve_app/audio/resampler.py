"""Any sample rate to the service's own, or back, piece by piece and without a seam."""

import numpy as np
import soxr
from numpy.typing import NDArray

from serve_app.speech import SAMPLE_RATE_HZ

_NOTHING: NDArray[np.float32] = np.zeros(0, dtype=np.float32)


class Resampler:
    """Resamples a mono stream, to 24 kHz unless told otherwise; how it is cut into pieces changes nothing.

    It looks ahead: about 35 ms of audio (50 ms from 8 kHz) wait inside until more comes, or the end. Between equal
    rates it does nothing at all.
    """

    def __init__(self, rate_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> None:
        self._stream = soxr.ResampleStream(rate_hz, to_hz, 1, dtype="float32") if rate_hz != to_hz else None
        self._was_fed = False

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take samples, float32 [n] at the stream's rate; return those that are ready, float32 [m] at the new one."""
        if self._stream is None or not len(samples):
            return samples
        self._was_fed = True
        return np.asarray(self._stream.resample_chunk(samples), dtype=np.float32)

    def finish(self) -> NDArray[np.float32]:
        """Say that no more samples come: the rest, float32 [n] at the new rate. Afterwards a new stream may begin."""
        if self._stream is None or not self._was_fed:
            return _NOTHING
        self._was_fed = False
        rest = np.asarray(self._stream.resample_chunk(_NOTHING, last=True), dtype=np.float32)
        self._stream.clear()
        return rest
