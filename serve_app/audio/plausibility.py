"""Is this audio what it is said to be? Looks at raw bytes and samples, says what they look like instead.

A wrong declaration gives noise, and noise gives silence instead of words. What is found here is found by its shape:
read as declared it is noise, and read in another way it is as smooth as sound is. Noise, silence, clipping and any
loudness are therefore fine.
"""

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.encodings import to_float32
from serve_app.audio.formats import SAMPLE_BYTES, AudioFormat
from serve_app.errors import InvalidAudio
from serve_app.speech import MAX_AMPLITUDE

WINDOW_BYTES = 16_384
"""How much is looked at in one go; a multiple of every format's frame."""

SUSPICIONS = 3
"""So many windows in a row must look wrong in the same way."""

MAX_WINDOWS = 8
"""So many windows with a signal in them are looked at; a declaration that was right so long stays right."""

_SMOOTH = 0.35
"""Roughness (see `_roughness`) below which something is sound; speech at 8 kHz has about 0.2, white noise 1."""

_NOISY = (0.4, 1.3)
"""Between these roughnesses something may be another format misread. A tone of nearly half the sample rate has 2."""

_TINY = 1e-19
"""Floats smaller than this are inaudible, and what 16-bit samples read as floats mostly are."""


class PlausibilityCheck:
    """Looks at the first windows of a raw stream that have a signal. Holds less than one window."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._window = bytearray()
        self._windows_left = MAX_WINDOWS
        self._suspect: str | None = None
        self._suspicions = 0

    def check(self, data: bytes) -> None:
        """Look at bytes that begin where a sample does. Raises InvalidAudio saying what they look like."""
        while data and self._windows_left:
            room = WINDOW_BYTES - len(self._window)
            self._window += data[:room]
            data = data[room:]
            if len(self._window) == WINDOW_BYTES:
                self._look(bytes(self._window))
                self._window.clear()

    def _look(self, window: bytes) -> None:
        if not _has_signal(window):
            return
        self._windows_left -= 1
        suspect = other_format(window, self._format)
        self._suspicions = self._suspicions + 1 if suspect and suspect == self._suspect else int(suspect is not None)
        self._suspect = suspect
        if suspect and self._suspicions >= SUSPICIONS:
            raise InvalidAudio(f"expected {self._format.encoding} samples, got something that looks like {suspect}")


def check_samples(samples: NDArray[np.float32], data: bytes, first: int) -> None:
    """Raise InvalidAudio if these float32 samples, read from `data`, cannot be audio.

    `first` is the index of the first of them in its stream; the error names the first bad one, and what it looks like.
    """
    valid = np.abs(samples) <= MAX_AMPLITUDE  # False for NaN as well.
    if valid.all():
        return
    bad = int(np.argmin(valid))
    value = float(samples[bad])
    if suspect := _other_view(data, "f32", 1, declared_roughness=1.0):
        looks_like = suspect
    elif np.isfinite(value) and abs(value) <= 2**31:
        looks_like = "integers that were not scaled to -1 ... 1"
    else:
        looks_like = "another format sent as float32, such as 16-bit PCM (?format=s16)"
    raise InvalidAudio(
        f"expected finite float32 samples between -1 and 1, got {value:g} at sample {first + bad}: "
        f"this looks like {looks_like}"
    )


def other_format(window: bytes, declared: AudioFormat) -> str | None:
    """What a window of raw bytes looks like, if that is not what was declared."""
    samples = to_float32(declared.encoding, window)
    if (samples[declared.channels :] == samples[: -declared.channels]).all():
        return None  # a constant, whose bytes are as regular in any other format
    if declared.encoding == "f32" and np.abs(samples).max() < _TINY:
        return _other_view(window, "f32", declared.channels, declared_roughness=1.0)
    roughness = _roughness(samples, {declared.channels})
    likely_noise = _NOISY[0] < roughness < _NOISY[1]
    return _other_view(window, declared.encoding, declared.channels, roughness) if likely_noise else None


def _other_view(window: bytes, declared: str, channels: int, declared_roughness: float) -> str | None:
    """The way to read the bytes in which they are sound, if there is one far smoother than the declared one."""
    best, least = None, min(_SMOOTH, declared_roughness / 3)
    for encoding, (name, handicap) in _VIEWS.items():
        if encoding != declared and (samples := _view(encoding, window)) is not None:
            roughness = _roughness(samples, {1, channels}) * handicap
            if roughness < least:
                best, least = name, roughness
    return best


_VIEWS = {
    "s16": ("16-bit PCM (?format=s16)", 1.0),
    "f32": ("float32 samples (?format=f32)", 1.0),
    "s16-big": ("big-endian 16-bit PCM (send little-endian, ?format=s16)", 1.0),
    "f32-big": ("big-endian float32 samples (send little-endian, ?format=f32)", 1.0),
    # Quiet 16-bit samples look a little like these, too.
    "mulaw": ("mu-law (?format=mulaw)", 2.0),
    "alaw": ("A-law (?format=alaw)", 2.0),
}
"""Ways to read bytes: what to call each, and how much smoother than the others it must be."""


def _view(encoding: str, window: bytes) -> NDArray[np.float32] | None:
    """The window read in some way, float32 [n]; None if it cannot be that."""
    window = window[: len(window) & ~3]
    if encoding.endswith("-big"):
        encoding = encoding.removesuffix("-big")
        window = np.frombuffer(window, dtype=f"u{SAMPLE_BYTES[encoding]}").byteswap().tobytes()
    samples = to_float32(encoding, window)
    if encoding == "f32":
        magnitudes = np.abs(samples)
        heard = magnitudes > 1e-7
        # Integers read as floats are anywhere between 1e-38 and 1e38; sound, silence apart, is not.
        if not (magnitudes < 4).all() or not (heard | (magnitudes == 0)).mean() > 0.98 or not heard.any():
            return None
        # Low halves of floats are anything, also beyond what the high halves of floats that are sound can be.
        low = np.abs(np.frombuffer(window, dtype="<i2")[::2].astype(np.int32))
        if (low > 0x4100).mean() < 0.1:
            return None
    return samples


def _has_signal(window: bytes) -> bool:
    """More than half of the window differs from its most frequent byte, which is what silence is made of."""
    counts = np.bincount(np.frombuffer(window, dtype=np.uint8), minlength=256)
    return bool(counts.max() < len(window) / 2)


def _roughness(samples: NDArray[np.float32], lags: set[int]) -> float:
    """Mean square of the steps between samples over twice their variance: 1 for white noise, near 0 for low tones.

    A step goes to the sample of the same channel, `lag` samples on; the smoothest of the lags counts. 1 for a constant.
    """
    if len(samples) < 64:
        return 1.0
    with np.errstate(all="ignore"):
        exact = samples.astype(np.float64)
        variance = exact.var()
        if not variance > 0:
            return 1.0
        return float(min(np.mean((exact[lag:] - exact[:-lag]) ** 2) for lag in lags) / (2 * variance))
