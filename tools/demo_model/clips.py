"""Clips to train on: utterances with gaps, in noise, some of them cut, among clicks and tones that are no words."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ
from tools.demo_model.synthesis import Utterances

HEARD_SHARE = 0.9  # a word that is cut later than this is still that word
LOST_SHARE = 0.6  # and one that is cut before this is none; cuts in between are not made
CUT_SHARE = 0.06  # of the utterances end in the middle
CUT_IN_SHARE = 0.15  # of the clips begin in the middle of an utterance
SPEECHLESS_SHARE = 0.1
CLICKS_SHARE = 0.15
TONES_SHARE = 0.2  # of the gaps that are long enough
FILTERED_SHARE = 0.4


class Gaps(NamedTuple):
    """How often which pauses come between utterances: shares and bounds in seconds."""

    shares: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...]


DENSE = Gaps((0.6, 0.4), ((0.0, 0.35), (0.4, 1.2)))
"""As much speech as possible, for the codec."""

SPARSE = Gaps((0.4, 0.22, 0.3, 0.08), ((0.0, 0.35), (0.4, 1.2), (1.5, 4.5), (6.0, 16.0)))
"""As conversations have it, for the language model and its pause heads."""


class Span(NamedTuple):
    """A word (index in `recipe.WORDS`) and when it is said, in seconds."""

    word: int
    start: float
    end: float


@dataclass
class Clip:
    """Audio float32 at 24 kHz and what is said in it."""

    samples: NDArray[np.float32]
    words: list[Span] = field(default_factory=list)
    fragments: list[tuple[float, float]] = field(default_factory=list)
    """What is left of words that were cut: neither words nor silence."""


def compose(choice: np.random.Generator, utterances: Utterances, frames: int, gaps: Gaps) -> Clip:
    """A clip of that many frames."""
    clip = Clip(np.zeros(frames * FRAME_SAMPLES, np.float32))
    seconds = len(clip.samples) / SAMPLE_RATE_HZ
    if choice.random() < SPEECHLESS_SHARE:
        if choice.random() < 0.6:
            _add(clip, tones(choice, choice.uniform(0.5, seconds)), choice.uniform(0, seconds / 2))
    else:
        _speak(choice, clip, utterances, gaps, seconds)
    if choice.random() < CLICKS_SHARE:
        _click(choice, clip.samples)
    if choice.random() < FILTERED_SHARE:
        kernel = np.concatenate([[1.0], choice.uniform(-0.35, 0.35, 4)]).astype(np.float32)
        clip.samples = np.convolve(clip.samples, kernel)[: len(clip.samples)]
    add_noise(choice, clip.samples)
    clip.samples = np.clip(clip.samples, -1, 1).astype(np.float32)
    return clip


def add_noise(choice: np.random.Generator, samples: NDArray[np.float32]) -> None:
    """Mostly white or muffled noise of -75 to -35 dB of full scale, seldom up to -25 dB, sometimes none."""
    kind = choice.random()
    if kind < 0.12:
        return
    level = choice.uniform(-75, -35) if kind < 0.95 else choice.uniform(-35, -25)
    noise = choice.standard_normal(len(samples), np.float32)
    if choice.random() < 0.5:
        width = int(choice.choice([2, 4, 8, 16]))
        sums = np.cumsum(np.concatenate([np.zeros(width, np.float32), noise]), dtype=np.float64)
        noise = ((sums[width:] - sums[:-width]) / math.sqrt(width)).astype(np.float32)
    samples += np.float32(10 ** (level / 20)) * noise


def tones(choice: np.random.Generator, seconds: float) -> NDArray[np.float32]:
    """Chords that come and go, as music has them; float32 at most 0.5."""
    samples = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    position = 0
    while position < len(samples):
        length = min(round(choice.uniform(0.1, 1.2) * SAMPLE_RATE_HZ), len(samples) - position)
        time = np.arange(length, dtype=np.float32) / SAMPLE_RATE_HZ
        base = 2 ** choice.uniform(math.log2(80), math.log2(900))
        steps = choice.choice([1, 5 / 4, 4 / 3, 3 / 2, 2], choice.integers(1, 4))
        sound = np.zeros(length, np.float32)
        for step in steps:
            for harmonic in range(1, int(choice.integers(2, 8))):
                phase = np.float32(2 * math.pi * choice.random())
                angle = np.float32(2 * math.pi * base * step * harmonic) * time + phase
                sound += np.float32(choice.uniform(0.1, 1) / harmonic) * np.sin(angle)
        decay = np.exp(-time * np.float32(choice.uniform(0, 6)))
        attack = np.minimum(1, time / np.float32(choice.uniform(0.003, 0.05)))
        samples[position : position + length] = sound * decay * attack
        position += length + round(max(0.0, choice.uniform(-0.2, 0.3)) * SAMPLE_RATE_HZ)
    peak = np.abs(samples).max(initial=1e-6)
    return samples * np.float32(choice.uniform(0.02, 0.5) / peak)


def _speak(choice: np.random.Generator, clip: Clip, utterances: Utterances, gaps: Gaps, seconds: float) -> None:
    position = choice.uniform(0, 0.6) if choice.random() < 0.6 else choice.uniform(0, min(4.0, seconds / 2))
    cut_in = choice.random() < CUT_IN_SHARE
    while position < seconds - 0.1:
        said = utterances[int(choice.integers(len(utterances)))]
        length = len(said.samples) / SAMPLE_RATE_HZ
        if cut_in:
            position, cut_in = -choice.uniform(0.05, 0.9) * length, False
        end = length
        if choice.random() < CUT_SHARE:
            end = choice.uniform(0.2, 1.0) * length
            word = next((word for word in said.words if word[1] < end < word[2]), None)
            if word is not None and LOST_SHARE < (end - word[1]) / (word[2] - word[1]) < HEARD_SHARE:
                end = word[1] + LOST_SHARE * (word[2] - word[1])
        samples = said.samples[: round(end * SAMPLE_RATE_HZ)].astype(np.float32)
        level = 10 ** (choice.uniform(-18, -1) / 20) / max(1.0, float(np.abs(said.samples).max()))
        _add(clip, samples * np.float32(level), position)
        for number, start, stop in said.words:
            _note(clip, Span(number, position + start, position + stop), position + end, seconds)
        position += end
        gap = choice.uniform(*gaps.bounds[choice.choice(len(gaps.shares), p=gaps.shares)])
        if gap > 1.5 and choice.random() < TONES_SHARE:
            _add(clip, tones(choice, gap - 0.6), position + 0.3)
        position += gap


def _note(clip: Clip, word: Span, cut: float, seconds: float) -> None:
    """Write down a word of which only what lies between 0 and `cut` is heard; it may last beyond the clip."""
    start, end = max(0.0, word.start), min(word.end, cut)
    if end <= start or start >= seconds:
        return
    lost = (start - word.start) / (word.end - word.start)
    heard = (min(word.end, cut) - word.start) / (word.end - word.start)
    if lost < 1 - HEARD_SHARE and heard > HEARD_SHARE:
        clip.words.append(Span(word.word, start, end))
    else:
        clip.fragments.append((start, end))


def _add(clip: Clip, samples: NDArray[np.float32], position: float) -> None:
    first = round(position * SAMPLE_RATE_HZ)
    samples = samples[max(0, -first) :]
    first = max(0, first)
    clip.samples[first : first + len(samples)] += samples[: max(0, len(clip.samples) - first)]


def _click(choice: np.random.Generator, samples: NDArray[np.float32]) -> None:
    for _ in range(choice.integers(1, 6)):
        length = int(choice.integers(1, 120))
        first = int(choice.integers(len(samples) - length))
        decay = np.exp(-np.arange(length, dtype=np.float32) / max(1.0, length / 4))
        samples[first : first + length] += (
            decay * choice.standard_normal(length, np.float32) * choice.uniform(0.03, 0.6)
        )
