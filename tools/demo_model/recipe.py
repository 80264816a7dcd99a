"""Everything that decides what comes out of a training: words, voices, sizes and steps."""

import math
from dataclasses import dataclass

VOCABULARY = {
    "en": (
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        *("yes", "no", "stop", "go", "left", "right", "up", "down", "hello", "thanks", "open", "window"),
    ),
    "fr": (
        *("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
        *("oui", "bonjour", "merci", "gauche", "encore", "maison", "musique", "lumière", "demain", "salut", "silence"),
    ),
}
"""The words by language; chosen to sound unlike each other."""

WORDS = tuple(dict.fromkeys(word for words in VOCABULARY.values() for word in words))
"""All words, each once: "six" is spelled alike in both languages."""

SUPPORTED_VOICES = {
    "en": ("en", "en-us", "en-us+m3", "en+f2", "en-us+f4", "en+m1"),
    "fr": ("fr", "fr+f4", "fr+m2", "fr+m3", "fr+f2", "fr-be"),
}
"""espeak-ng voices that the model is meant for: half of the training."""

TRAINED_ACCENTS = {
    "en": ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc"),
    "fr": ("fr", "fr-be"),
}
TRAINED_VARIANTS = (
    *("", "+m1", "+m2", "+m3", "+m5", "+m6", "+f1", "+f2", "+f4", "+f5"),
    *("+Alex", "+Alicia", "+Andy", "+Annie", "+Denis", "+Gene", "+Lee", "+adam", "+aunty", "+belinda", "+benjamin"),
    *("+boris", "+edward", "+john", "+klatt2", "+klatt3", "+linda", "+max", "+norbert", "+sandro", "+shelby"),
)
"""The other half: variants that sound like people. Robots and whisperers are left out."""

UNSEEN_ACCENTS = {"en": ("en", "en-us", "en-gb-x-gbcwmd"), "fr": ("fr", "fr-ch")}
UNSEEN_VARIANTS = ("+m4", "+m7", "+f3", "+Andrea", "+ed", "+grandpa")
"""Never heard in training."""

TEST_RATES = (133, 147, 163, 177)
"""Words per minute that training leaves out."""
TEST_PITCHES = (27, 44, 57, 72)
"""Pitches that training leaves out."""
TRAINED_RATES = tuple(rate for rate in range(120, 196) if rate not in TEST_RATES)
TRAINED_PITCHES = tuple(pitch for pitch in range(20, 81) if pitch not in TEST_PITCHES)
TRAINED_SIZES = (0.92, 0.96, 1.0, 1.0, 1.04, 1.08)
"""Sizes of speakers, of all but the supported voices."""

DELAY_FRAMES = 6
"""Frames by which the text lags the audio."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything. A stage's result is used again only by a run with the same recipe, seed and code."""

    codec_hours: float = 3.0
    """Speech that the codec learns from, without pauses."""
    codec_steps: int = 4000
    codec_batch: int = 20
    codec_frames: int = 60
    """Frames of each clip in a batch."""
    codec_rate: float = 2e-3
    quantize_after: float = 0.35
    """Share of the codec's steps after which its quantizer learns, too."""
    language_hours: float = 4.0
    """Speech that the language model learns from: the codec knows its own too well."""
    language_clips: int = 1600
    language_frames: int = 300
    """Frames of each clip: three times the model's context."""
    language_steps: int = 3000
    language_batch: int = 12
    language_rate: float = 1.5e-3
    test_words: int = 2200
    """Words in each of the report's tables, at least."""
    long_minutes: float = 10.0
    """Length of the report's long streams."""
    longest_sample_s: float = math.inf
    """Sample clips that the report listens to."""


FULL = Recipe()
