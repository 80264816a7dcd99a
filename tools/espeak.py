"""Speech from espeak-ng through its C library, with the times of its words: the program itself does not tell them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 24_000
TRIM_HOP = 240
TRIM_LEVEL = 0.03  # of the loudest 10 ms of an utterance


class SpeechError(Exception):
    """espeak-ng is missing or cannot do what it is asked to; the text says what to do."""


@dataclass
class Word:
    """One word and when it is said, in seconds."""

    text: str
    start: float
    end: float


@dataclass
class Speech:
    """Audio (float32, 24 kHz) and what is said in it."""

    samples: NDArray[np.float32]
    words: list[Word] = field(default_factory=list)


class _Value(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Value),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Synthesizer:
    """The library, once per process: it cannot be started a second time."""

    SYNCHRONOUS, CHARACTER_POSITION, UTF8 = 2, 1, 1
    RATE, PITCH, PITCH_RANGE = 1, 3, 4
    LIST_TERMINATED, WORD = 0, 1

    def __init__(self) -> None:
        """Raises SpeechError where espeak-ng is not installed."""
        try:
            self._library = ctypes.CDLL("libespeak-ng.so.1")
        except OSError as error:
            raise SpeechError(
                f"espeak-ng is missing ({error}): install it, on Debian `apt-get install espeak-ng`"
            ) from None
        self._rate_hz = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, None, 0)
        if self._rate_hz <= 0:
            raise SpeechError(
                "espeak-ng does not start: its data is missing, on Debian `apt-get install espeak-ng-data`"
            )
        self._pieces: list[NDArray[np.int16]] = []
        self._starts: dict[int, int] = {}
        self._callback = _CALLBACK(self._on_audio)  # the library keeps no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(
        self,
        words: Sequence[str],
        voice: str,
        words_per_minute: int,
        pitch: int,
        separator: str = ", ",
        size: float = 1,
    ) -> Speech:
        """Say the words in one go. `size` above 1 is a larger speaker: slower, and all frequencies lower.

        Raises SpeechError for an unknown voice, and where the library does not tell when it says each word.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeechError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(self.RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(self.PITCH, pitch, 0)
        self._library.espeak_SetParameter(self.PITCH_RANGE, 50, 0)
        self._pieces.clear()
        self._starts.clear()
        data = separator.join(words).encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, self.CHARACTER_POSITION, 0, self.UTF8, None, None)
        spoken = np.concatenate([np.zeros(0, np.int16), *self._pieces]).astype(np.float32) / 32_768
        rate_hz = self._rate_hz / size
        samples = soxr.resample(spoken, rate_hz, RATE_HZ)
        starts, position = [], 1  # espeak counts characters from 1
        for word in words:
            if position not in self._starts:
                raise SpeechError(f"espeak-ng does not tell when the voice {voice!r} says {word!r} in {words}")
            starts.append(int(self._starts[position] * RATE_HZ / rate_hz))
            position += len(word) + len(separator)
        return Speech(samples, _trimmed(words, [*starts, len(samples)], samples))

    def _on_audio(self, samples, count, events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != self.LIST_TERMINATED:
            if events[index].type == self.WORD:
                self._starts.setdefault(events[index].text_position, events[index].sample)
            index += 1
        return 0


def _trimmed(words: Sequence[str], edges: list[int], samples: NDArray[np.float32]) -> list[Word]:
    """Take the silence off both ends of each word, in steps of 10 ms."""
    hops = len(samples) // TRIM_HOP
    power = np.square(samples[: hops * TRIM_HOP].reshape(hops, TRIM_HOP)).mean(axis=1)
    loud = np.sqrt(power) > TRIM_LEVEL * np.sqrt(power.max(initial=0))
    trimmed = []
    for word, start, end in zip(words, edges, edges[1:], strict=False):
        first = start // TRIM_HOP
        active = np.flatnonzero(loud[first : end // TRIM_HOP])
        if not len(active):
            raise SpeechError(f"expected to hear {word!r} from espeak-ng, got silence")
        begin, finish = first + active[0], first + active[-1] + 1
        trimmed.append(Word(word, round(begin * TRIM_HOP / RATE_HZ, 3), round(finish * TRIM_HOP / RATE_HZ, 3)))
    return trimmed
