"""What is said to the service, what comes back of it, and how far the two are apart."""

from dataclasses import dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

from serve_app.speech import SAMPLE_RATE_HZ

_PLAIN_WORDS = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.RemovePunctuation(),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)
"""Kyutai's models write capitals and punctuation, references often do not."""


@dataclass(frozen=True)
class Said:
    """The audio that every dialect gets."""

    samples: NDArray[np.float32]
    """float32 [n], mono, 24 kHz."""
    file: bytes
    """The same as a file, for uploads."""
    first_word_s: float | None = None
    """Where the first word begins, if that is known beforehand."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Heard:
    """What a dialect told of it."""

    text: str
    first_word_s: float | None = None
    """When the first text came: after its beginning had been sent, for an upload after the request."""
    begins_s: float | None = None
    """Where in the audio the first word begins, from a dialect that tells."""


class Unexpected(Exception):
    """The service answered something else than its documents say; the text says what was expected and what came."""


def word_errors(reference: str, text: str) -> float:
    """Word error rate, whatever the case and the punctuation; 1 where there is no reference but some text."""
    if not _PLAIN_WORDS(reference)[0]:
        return float(bool(_PLAIN_WORDS(text)[0]))
    return float(jiwer.wer(reference, text, reference_transform=_PLAIN_WORDS, hypothesis_transform=_PLAIN_WORDS))
