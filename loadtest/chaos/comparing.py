"""What a disturbed session lost, against the same session undisturbed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jiwer
import numpy as np

from loadtest.chaos.sessions import Heard, HeardWord

TIME_TOLERANCE_SECONDS = 0.25
"""A word whose start has moved by more than this is another word: its time is part of what it says."""


@dataclass
class Difference:
    """One session's words against its undisturbed ones, and how long it was held up."""

    lost: int = 0
    doubled: int = 0
    """Words more than in the undisturbed run."""
    changed: int = 0
    """Another text, or the same at another time of the audio."""
    delays_s: list[float] = field(default_factory=list)
    """How much later than undisturbed each word came that is the same in both."""


def compare(undisturbed: Sequence[HeardWord], disturbed: Sequence[HeardWord]) -> Difference:
    """Align the words with the fewest edits and count those."""
    if not undisturbed or not disturbed:
        return Difference(lost=len(undisturbed), doubled=len(disturbed))
    difference = Difference()
    texts = [" ".join(word.text for word in words) for words in (undisturbed, disturbed)]
    for chunk in jiwer.process_words(*texts).alignments[0]:
        before = undisturbed[chunk.ref_start_idx : chunk.ref_end_idx]
        after = disturbed[chunk.hyp_start_idx : chunk.hyp_end_idx]
        match chunk.type:
            case "delete":
                difference.lost += len(before)
            case "insert":
                difference.doubled += len(after)
            case "substitute":
                difference.changed += len(before)
            case _:
                for one, other in zip(before, after, strict=True):
                    difference.changed += abs(one.start_s - other.start_s) > TIME_TOLERANCE_SECONDS
                    difference.delays_s.append(other.at_s - one.at_s)
    return difference


def pause_s(heard: Heard, difference: Difference) -> float:
    """How long the session was held up at most, in seconds: by its latest word, or by a move that it was told of."""
    return max(0.0, 0.0, *difference.delays_s, *heard.migrations_s)


def word_delay_p99_s(everyone: Sequence[Heard]) -> float:
    """99th percentile of all words' delays from their end in the audio to their arrival; 0 without words."""
    delays = [word.at_s - word.end_s for heard in everyone for word in heard.words]
    return round(float(np.percentile(delays, 99)), 3) if delays else 0.0
