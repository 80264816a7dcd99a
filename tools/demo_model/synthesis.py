"""Utterances of random words, said by espeak-ng, kept in one large array."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from tools.demo_model import recipe
from tools.demo_model.files import save_array
from tools.espeak import RATE_HZ, SpeechError, Synthesizer

TELEPHONE_HZ = 8_000
TELEPHONE_SHARE = 0.08  # of the utterances have nothing above 4 kHz
TOGETHER_SHARE = 0.25  # of the utterances have no commas: their words run together
MOST_WORDS = 6
MARGIN_S = 0.1  # kept before the first word and after the last one: weak consonants are trimmed off their times


class Said(NamedTuple):
    """One utterance."""

    samples: NDArray[np.int16]
    words: tuple[tuple[int, float, float], ...]
    """Index in `recipe.WORDS`, start and end in seconds."""
    voice: str
    words_per_minute: int
    together: bool
    """Whether its words run together."""


@dataclass(frozen=True)
class Utterances:
    """Many utterances; `audio` int16 at 24 kHz may be mapped from a file."""

    audio: NDArray[np.int16]
    facts: tuple[tuple, ...]
    """Per utterance: first sample, last sample, words, voice, words per minute, whether they run together."""

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: int) -> Said:
        start, stop, *rest = self.facts[index]
        return Said(self.audio[start:stop], *rest)

    @classmethod
    def of(cls, said: list[Said]) -> "Utterances":
        """Join utterances."""
        edges = np.cumsum([0, *(len(one.samples) for one in said)]).tolist()
        facts = tuple((start, stop, *one[1:]) for start, stop, one in zip(edges, edges[1:], said, strict=False))
        return cls(np.concatenate([one.samples for one in said]), facts)

    def save(self, folder: Path) -> None:
        """Write into an existing folder. Raises OSError."""
        save_array(folder / "audio.npy", self.audio)
        (folder / "utterances.json").write_text(json.dumps(self.facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Utterances":
        """What `save` wrote, its audio mapped."""
        facts = json.loads((folder / "utterances.json").read_text(encoding="utf-8"))
        return cls(np.load(folder / "audio.npy", mmap_mode="r"), tuple(map(tuple, facts)))


class Speaker(NamedTuple):
    """Who says the next utterance, and how."""

    language: str
    voice: str
    words_per_minute: int
    pitch: int
    size: float = 1.0


def trained_speaker(choice: random.Random) -> Speaker:
    """A supported voice, or any other one that training may use."""
    language = choice.choice(("en", "fr"))
    rate, pitch = choice.choice(recipe.TRAINED_RATES), choice.choice(recipe.TRAINED_PITCHES)
    if choice.random() < 0.5:
        return Speaker(language, choice.choice(recipe.SUPPORTED_VOICES[language]), rate, pitch)
    voice = choice.choice(recipe.TRAINED_ACCENTS[language]) + choice.choice(recipe.TRAINED_VARIANTS)
    return Speaker(language, voice, rate, pitch, choice.choice(recipe.TRAINED_SIZES))


def supported_speaker(choice: random.Random) -> Speaker:
    """A supported voice at a rate and a pitch that training leaves out."""
    language = choice.choice(("en", "fr"))
    voice = choice.choice(recipe.SUPPORTED_VOICES[language])
    return Speaker(language, voice, choice.choice(recipe.TEST_RATES), choice.choice(recipe.TEST_PITCHES))


def unseen_speaker(choice: random.Random) -> Speaker:
    """A voice, a rate and a pitch that training leaves out."""
    language = choice.choice(("en", "fr"))
    voice = choice.choice(recipe.UNSEEN_ACCENTS[language]) + choice.choice(recipe.UNSEEN_VARIANTS)
    return Speaker(language, voice, choice.choice(recipe.TEST_RATES), choice.choice(recipe.TEST_PITCHES))


def utterances(
    seed: int,
    speaker: Callable[[random.Random], Speaker],
    *,
    vocabulary: Sequence[str] = recipe.WORDS,
    together_share: float = TOGETHER_SHARE,
    telephone_share: float = TELEPHONE_SHARE,
) -> Iterator[Said]:
    """Utterances without end, of words in `vocabulary`. Raises SpeechError where espeak-ng is missing."""
    synthesizer, choice = Synthesizer(), random.Random(seed)
    words_of = {
        language: [word for word in words if word in vocabulary] for language, words in recipe.VOCABULARY.items()
    }
    failed = 0
    while True:
        who = speaker(choice)
        texts = [choice.choice(words_of[who.language]) for _ in range(choice.randint(1, MOST_WORDS))]
        together, telephone = choice.random() < together_share, choice.random() < telephone_share
        try:
            speech = synthesizer.say(
                texts, who.voice, who.words_per_minute, who.pitch, " " if together else ", ", who.size
            )
        except SpeechError:  # rare: a voice that swallows a word, or tells no time for it
            failed += 1
            if failed > 100:
                raise
            continue
        failed = 0
        samples = speech.samples
        if telephone:
            samples = soxr.resample(soxr.resample(samples, RATE_HZ, TELEPHONE_HZ), TELEPHONE_HZ, RATE_HZ)
        begin = max(0.0, speech.words[0].start - MARGIN_S)
        end = speech.words[-1].end + MARGIN_S
        words = tuple(
            (recipe.WORDS.index(word.text), round(word.start - begin, 3), round(word.end - begin, 3))
            for word in speech.words
        )
        samples = samples[round(begin * RATE_HZ) : round(end * RATE_HZ)]
        whole = np.round(np.clip(samples, -1, 1) * 32_767).astype(np.int16)
        yield Said(whole, words, who.voice, who.words_per_minute, together)
