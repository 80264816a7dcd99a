"""The bundled sample clips, and others, and what is said in them."""

import glob
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.files import AudioFileError, read_audio
from serve_app.settings import PROJECT_ROOT
from serve_app.speech import SAMPLE_RATE_HZ

FOLDER = PROJECT_ROOT / "configs" / "samples"
MANIFEST = "manifest.json"
TEXT_SUFFIX = ".txt"

SHORT_S = 30.0
"""Below which bundled clips are short enough for sessions one after the other."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a clip and where in the audio it is, in seconds; nan where nobody knows."""

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
    """None where nobody knows what is said."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / SAMPLE_RATE_HZ

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


def read_clips(place: Path) -> list[Clip]:
    """The clips of a folder, or the one in a file.

    A folder has a manifest as the bundled one does, or audio files each with its text beside it (`a.wav`, `a.txt`). A
    single file's text may be missing. Raises `AudioFileError`.
    """
    if not place.is_dir():
        return [_with_text(place, place.with_suffix(TEXT_SUFFIX).is_file())]
    if (place / MANIFEST).is_file():
        return load_clips(folder=place)
    texts = sorted(place.glob(f"*{TEXT_SUFFIX}"))
    audio = [file for text in texts for file in sorted(place.glob(f"{glob.escape(text.stem)}.*")) if file != text]
    if not audio:
        raise AudioFileError(place, f"expected {MANIFEST}, or audio files with their texts beside them (a.wav, a.txt)")
    return [_with_text(file, True) for file in audio]


def choose_clips(places: Iterable[Path] = ()) -> list[Clip]:
    """The clips in these places, or the short ones of the bundled. Raises `AudioFileError`."""
    return [clip for place in places for clip in read_clips(place)] or load_clips(SHORT_S)


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


def _with_text(file: Path, has_text: bool) -> Clip:
    try:
        text = file.with_suffix(TEXT_SUFFIX).read_text(encoding="utf-8") if has_text else ""
    except (OSError, UnicodeDecodeError) as error:
        raise AudioFileError(file.with_suffix(TEXT_SUFFIX), f"cannot be read ({error})") from None
    return Clip(file.name, read_audio(file), tuple(SpokenWord(word, math.nan, math.nan) for word in text.split()))


def _read(folder: Path, entry: dict[str, Any]) -> Clip:
    words = tuple(SpokenWord(word["text"], word["start"], word["end"]) for word in entry["words"])
    return Clip(entry["file"], read_audio(folder / entry["file"]), words)
