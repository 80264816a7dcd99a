"""What a session says: one clip, or several in a row up to a length."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from serve_app.samples import Clip
from serve_app.speech import SAMPLE_RATE_HZ


class InvalidLength(Exception):
    """A session's length is not what was expected."""


def parse_length(text: str) -> tuple[float, float] | None:
    """Read `12` or `5-30` (seconds), or nothing for whole clips. Raises `InvalidLength`."""
    if not text:
        return None
    shortest, _, longest = text.partition("-")
    try:
        length = float(shortest), float(longest or shortest)
    except ValueError:
        length = 0.0, 0.0
    if not 0 < length[0] <= length[1] < 86_400:
        raise InvalidLength(f"expected seconds, as in 12 or 5-30, got {text!r}")
    return length


def write_script(clips: Sequence[Clip], length: tuple[float, float] | None, draw: random.Random) -> Clip:
    """Draw a clip; with a length draw that, too, and further clips until there is enough audio, cut between words.

    It has the first one's name. Clips whose words have no times stay whole.
    """
    first = draw.choice(clips)
    if length is None:
        return first
    seconds = draw.uniform(*length)
    pieces, words, spoken = [first.samples], list(first.words), first.seconds
    while spoken < seconds:
        clip = draw.choice(clips)
        words += [replace(word, start_s=word.start_s + spoken, end_s=word.end_s + spoken) for word in clip.words]
        pieces.append(clip.samples)
        spoken += clip.seconds
    samples = np.concatenate(pieces)
    kept = max(1, len(list(takewhile(lambda word: not word.end_s > seconds, words))))
    if kept < len(words):
        cut_s = (words[kept - 1].end_s + words[kept].start_s) / 2
        samples = samples[: round(cut_s * SAMPLE_RATE_HZ)]
    return Clip(first.file, samples, tuple(words[:kept]))
