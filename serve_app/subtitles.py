"""From segments to subtitles that can be read: two short lines at a time, and long enough. Pure."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from serve_app.segments import Segment
from serve_app.transcript import Word

LINE_CHARACTERS = 42
"""Longest line, as broadcasters have it; a longer word is not cut."""

CUE_LINES = 2
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0
"""A shorter cue stays on the screen as long, unless the next one comes."""


@dataclass(frozen=True)
class Cue:
    """What is on the screen at once."""

    lines: tuple[str, ...]
    start_s: float
    end_s: float


def cues(segments: Iterable[Segment]) -> list[Cue]:
    """Cut segments where they are too long to be read at once."""
    found = [_cue(words) for segment in segments for words in _cut(segment.words)]
    return [
        replace(cue, end_s=max(cue.end_s, min(cue.start_s + MIN_CUE_SECONDS, following)))
        for cue, following in zip(found, [*(cue.start_s for cue in found[1:]), float("inf")], strict=True)
    ]


def srt(cues: Sequence[Cue]) -> str:
    """A SubRip file."""
    return "".join(
        f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """A WebVTT file."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n" + "\n".join(map(_escaped, cue.lines)) + "\n\n"
        for cue in cues
    )


def _cut(words: Sequence[Word]) -> Iterable[list[Word]]:
    together: list[Word] = []
    for word in words:
        longer = [*together, word]
        too_long = word.end_s - longer[0].start_s > MAX_CUE_SECONDS or len(_lines(longer)) > CUE_LINES
        if together and too_long:
            yield together
            longer = [word]
        together = longer
    if together:
        yield together


def _cue(words: Sequence[Word]) -> Cue:
    return Cue(tuple(_lines(words)), words[0].start_s, words[-1].end_s)


def _lines(words: Sequence[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """WebVTT reads tags and entities in cues."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(rest, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"
