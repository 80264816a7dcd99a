"""Does audio come as fast as its declared rate says? A wrong sample rate shows in nothing else."""

from collections import deque

from serve_app.audio.formats import SAMPLE_BYTES, SAMPLE_RATES_HZ, AudioFormat
from serve_app.errors import InvalidAudio

WATCHED_SECONDS = 12.0
"""How long the pace must have been the same wrong one."""

_BINS = 12
_STEADY = 0.1
"""How much each bin may differ from their mean. What a network or a busy sender slows down differs more."""

_TOLERANCE = 0.015
"""How much the pace may differ from one that explains it."""

_FASTER = (1.3, 6.0)
_SLOWER = (0.15, 0.75)
"""Paces looked at. Between 0.75 and 1.3 sit senders that sleep a frame's time between frames, and the like."""

_SLACK = 0.1
"""Multiples of a half are paces that people choose for files, so an explanation must be this far from them."""


class PaceCheck:
    """Watches a raw stream's bytes per second.

    Only what is very likely wrong counts: a steady pace, for `WATCHED_SECONDS` without a pause, that another sample
    rate, format or number of channels explains. Faster than real time is what files are sent at, so there it must also
    be one that nobody chooses (44,100 Hz declared as 24,000 Hz is 1.8375 times real time; 48,000 Hz as 24,000 Hz cannot
    be told from a file at twice real time). Bounded: one count per second watched. For Opus it does nothing.
    """

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._explanations = _explanations(audio_format) if audio_format.bytes_per_second else []
        self._started_at: float | None = None
        self._bin_bytes = 0
        self._bins: deque[float] = deque(maxlen=_BINS)

    def reset(self) -> None:
        """Forget: the receiver kept the sender waiting, so what comes now has another pace."""
        self._started_at = None
        self._bin_bytes = 0
        self._bins.clear()

    def check(self, size: int, now: float) -> None:
        """Count bytes that came now (seconds, of any clock that only rises).

        Raises InvalidAudio saying what the pace looks like.
        """
        seconds = WATCHED_SECONDS / _BINS
        if self._started_at is None or now - self._started_at > 2 * seconds:
            self.reset()
            self._started_at = now  # these bytes have come in a time that nobody knows
            return
        self._bin_bytes += size
        elapsed = now - self._started_at
        if elapsed < seconds:
            return
        self._bins.append(self._bin_bytes / elapsed)
        self._started_at, self._bin_bytes = now, 0
        if len(self._bins) == _BINS:
            self._judge()

    def _judge(self) -> None:
        mean = sum(self._bins) / _BINS
        if not mean or not self._explanations or max(abs(one - mean) for one in self._bins) > _STEADY * mean:
            return
        expected = self._format.bytes_per_second
        pace = mean / expected
        for explained, looks_like in self._explanations:
            if abs(pace / explained - 1) < _TOLERANCE:
                raise InvalidAudio(
                    f"expected about {expected} bytes a second ({self._format.query}), got {mean:.0f} for "
                    f"{WATCHED_SECONDS:g} s: this looks like {looks_like}"
                )


def _explanations(declared: AudioFormat) -> list[tuple[float, str]]:
    """Paces that mean a wrong declaration, as multiples of real time, and what explains each; likelier ones first."""
    found: list[tuple[float, str]] = []
    for other in _others(declared):
        pace = other.bytes_per_second / declared.bytes_per_second
        is_odd = abs(2 * pace - round(2 * pace)) > 2 * _SLACK
        if _SLOWER[0] <= pace <= _SLOWER[1] or (_FASTER[0] <= pace <= _FASTER[1] and is_odd):
            found.append((pace, f"{other.sample_rate_hz} Hz, {other.encoding} ({other.query})"))
    return found


def _others(declared: AudioFormat) -> list[AudioFormat]:
    """Formats that differ in the rate, then in the number of channels, then in the encoding."""
    rates = [AudioFormat(declared.encoding, rate_hz, declared.channels) for rate_hz in SAMPLE_RATES_HZ]
    channels = [AudioFormat(declared.encoding, declared.sample_rate_hz, 3 - declared.channels)]
    encodings = [AudioFormat(name, declared.sample_rate_hz, declared.channels) for name in SAMPLE_BYTES]
    return [other for other in (*rates, *channels, *encodings) if other != declared]
