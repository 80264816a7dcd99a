"""Several channels as one."""

import numpy as np
from numpy.typing import NDArray


def downmix(samples: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """The mean of interleaved channels: float32 [n * channels] to float32 [n].

    Channel by channel: NumPy's mean over a short axis takes five times as long.
    """
    if channels == 1:
        return samples
    mixed = samples[::channels].copy()
    for channel in range(1, channels):
        mixed += samples[channel::channels]
    mixed *= np.float32(1 / channels)
    return mixed
