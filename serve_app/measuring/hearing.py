"""How well, and how soon, a service heard what was said to it.

All times of arrival are in seconds since the clock of the audio started: at `rtf` 1 the sample at second t is spoken at
t, at `rtf` 3 at t / 3. A delay is the time a listener waited: from then until the text was there.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jiwer

from serve_app.samples import SpokenWord

_MARKS = re.compile(r"[\W_]")
"""Kyutai's models write punctuation, references often do not, or with other apostrophes."""


@dataclass(frozen=True)
class HeardWord:
    """A word that came back."""

    text: str
    at_s: float
    """When its text was complete."""
    start_s: float = math.nan
    """Where in the audio it is, by the service's account; nan from a service that does not say."""
    end_s: float = math.nan


class Hearing:
    """Puts together what comes back, in order: pieces of text, and the places of the words that they make up.

    A word is complete with its last piece: that is when a listener has it. Its place may come later.
    """

    def __init__(self) -> None:
        self.first_text_at_s: float | None = None
        """When the first text came."""
        self.words: list[HeardWord] = []
        """The words so far."""
        self._placed = 0
        self._is_between_words = True

    @property
    def text(self) -> str:
        """All words, in order."""
        return " ".join(word.text for word in self.words)

    def add_text(self, text: str, at_s: float) -> None:
        """Take a piece of text; white space parts words, and there may be several in it."""
        if not text.strip():
            self._is_between_words |= bool(text)
            return
        if self.first_text_at_s is None:
            self.first_text_at_s = at_s
        first, *others = text.split()
        if text[0].isspace() or self._is_between_words:
            self.words.append(HeardWord(first, at_s))
        else:
            self.words[-1] = replace(self.words[-1], text=self.words[-1].text + first, at_s=at_s)
        self.words += [HeardWord(other, at_s) for other in others]
        self._is_between_words = text[-1].isspace()

    def add_place(self, start_s: float, end_s: float) -> None:
        """Take the place in the audio of the first word that has none yet."""
        if self._placed < len(self.words):
            self.words[self._placed] = replace(self.words[self._placed], start_s=start_s, end_s=end_s)
            self._placed += 1


@dataclass(frozen=True)
class WordDelay:
    """How long a listener waited for a word."""

    at_s: float
    """When it was complete."""
    delay_s: float
    """Since its end was spoken."""


@dataclass(frozen=True)
class Comparison:
    """What was heard, held against what was said."""

    words: int
    """Words said; 0 where nobody knows."""
    errors: int
    """Words that were missed, invented or changed, whatever their case and punctuation."""
    first_token_s: float | None
    """From the start of the first word to the first text; None where either is not known."""
    word_delays: tuple[WordDelay, ...]
    """Of the words that were heard right; without a reference, of all."""

    @property
    def wer(self) -> float | None:
        """Word error rate; None without a reference."""
        return self.errors / self.words if self.words else None


def compare(spoken: Sequence[SpokenWord], hearing: Hearing, rtf: float = 1.0) -> Comparison:
    """Hold what was heard against the words of the audio, which may be none, with times that may be nan.

    What the reference does not know of a word's place, the service's own account says.
    """
    said = [(_plain(word.text), word) for word in spoken if _plain(word.text)]
    heard = [(_plain(word.text), word) for word in hearing.words if _plain(word.text)]
    if said:
        pairs, errors = _aligned([text for text, _ in said], [text for text, _ in heard])
        places = [(said[number][1].end_s, heard[position][1]) for number, position in pairs]
    else:
        errors, places = 0, [(math.nan, word) for _, word in heard]
    starts = [said[0][1].start_s] if said else []
    starts += [heard[0][1].start_s] if heard else []
    start_s = next((start for start in starts if not math.isnan(start)), None)
    first = hearing.first_text_at_s
    ends = ((end if not math.isnan(end) else word.end_s, word.at_s) for end, word in places)
    return Comparison(
        len(said),
        errors,
        first - start_s / rtf if first is not None and start_s is not None else None,
        tuple(WordDelay(at, at - end / rtf) for end, at in ends if not math.isnan(end)),
    )


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Words that were missed, invented or changed, whatever their case and punctuation, and how many were said."""
    reference, words = ([plain for word in text.split() if (plain := _plain(word))] for text in (said, heard))
    return _aligned(reference, words)[1], len(reference)


def differences(spoken: Iterable[SpokenWord], heard: Iterable[HeardWord]) -> list[tuple[str, str]]:
    """The texts side by side, in order: (said, heard), with an empty one where a word was missed or invented."""
    said, got = [word.text for word in spoken], [word.text for word in heard]
    if not said or not got:
        return [(text, "") for text in said] + [("", text) for text in got]
    shown: list[tuple[str, str]] = []
    for chunk in _process([_plain(text) or "-" for text in said], [_plain(text) or "-" for text in got]).alignments[0]:
        left, right = said[chunk.ref_start_idx : chunk.ref_end_idx], got[chunk.hyp_start_idx : chunk.hyp_end_idx]
        length = max(len(left), len(right))
        shown += zip(left + [""] * (length - len(left)), right + [""] * (length - len(right)), strict=True)
    return shown


def same(said: str, heard: str) -> bool:
    """Whether two words are the same, whatever their case and punctuation."""
    return _plain(said) == _plain(heard)


def _aligned(said: list[str], heard: list[str]) -> tuple[list[tuple[int, int]], int]:
    """Positions of the words that are the same in both, and the number of errors."""
    if not said or not heard:
        return [], max(len(said), len(heard))
    result = _process(said, heard)
    pairs = [
        (chunk.ref_start_idx + number, chunk.hyp_start_idx + number)
        for chunk in result.alignments[0]
        if chunk.type == "equal"
        for number in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]
    return pairs, result.substitutions + result.deletions + result.insertions


def _process(said: list[str], heard: list[str]) -> jiwer.WordOutput:
    return jiwer.process_words(" ".join(said), " ".join(heard))


def _plain(text: str) -> str:
    return _MARKS.sub("", text).casefold()
