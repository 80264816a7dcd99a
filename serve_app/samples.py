"""The bundled sample clips, what is said in them, and when a listener heard it."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.files import AudioFileError, read_audio
from serve_app.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "configs" / "samples"
MANIFEST = "manifest.json"

MATCH_SECONDS = 1.5
"""A heard word that begins this soon after a spoken one with the same text is that word."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a clip and where in the audio it is."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Clip:
    """A sample clip and what is said in it."""

    file: str
    samples: NDArray[np.float32]
    """float32 [n], mono, 24 kHz."""
    words: tuple[SpokenWord, ...]

    @property
    def text(self) -> str:
        """All words, in order."""
        return " ".join(word.text for word in self.words)


def demo_clip(folder: Path = FOLDER) -> Clip:
    """The clip of `make demo`: the manifest's first. Raises `AudioFileError`."""
    return _read(folder, _entries(folder)[0])


def load_clips(longest_s: float = math.inf, folder: Path = FOLDER) -> list[Clip]:
    """All clips whose last word ends before `longest_s`. Raises `AudioFileError`."""
    return [_read(folder, entry) for entry in _entries(folder) if entry["words"][-1]["end"] < longest_s]


def word_delays_s(words: Iterable[SpokenWord], heard: Sequence[tuple[str, float]]) -> list[float]:
    """How long after its start each spoken word was heard; words that were not are left out.

    `heard` is the text and the time of each heard word, in seconds of the audio's clock.
    """
    delays = []
    for word in words:
        near = [at - word.start_s for text, at in heard if text == word.text and 0 <= at - word.start_s < MATCH_SECONDS]
        delays += near[:1]
    return delays


def _entries(folder: Path) -> list[dict[str, Any]]:
    manifest = folder / MANIFEST
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        complete = all(entry["file"] and entry["words"][-1]["end"] for entry in entries)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise AudioFileError(manifest, f"expected a list of clips with their words ({error!r})") from None
    if not entries or not complete:
        raise AudioFileError(manifest, "expected a list of clips with their words, got none")
    return list(entries)


def _read(folder: Path, entry: dict[str, Any]) -> Clip:
    words = tuple(SpokenWord(word["text"], word["start"], word["end"]) for word in entry["words"])
    return Clip(entry["file"], read_audio(folder / entry["file"]), words)
