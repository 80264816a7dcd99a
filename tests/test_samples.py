"""The sample clips are what their manifest says."""

import json
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.files import read_audio
from serve_app.speech import SAMPLE_RATE_HZ

FOLDER = Path(__file__).parent.parent / "configs" / "samples"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
ENGLISH = "zero one two three four five six seven eight nine yes no stop go left right up down hello thanks"
FRENCH = "zéro un deux trois quatre cinq six sept huit neuf oui bonjour merci"
VOCABULARY = {"en": set(ENGLISH.split()), "fr": set(FRENCH.split())}


def test_the_folder_holds_the_clips_and_nothing_else():
    assert {entry["file"] for entry in MANIFEST} == {path.name for path in FOLDER.iterdir()} - {"manifest.json"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000


def test_the_first_clip_suits_the_demo():
    seconds = len(read_audio(FOLDER / MANIFEST[0]["file"])) / SAMPLE_RATE_HZ
    assert MANIFEST[0]["language"] == "en"
    assert 7 <= seconds <= 8


def test_both_languages_and_one_long_clip():
    assert {entry["language"] for entry in MANIFEST} == {"en", "fr"}
    assert max(entry["words"][-1]["end"] for entry in MANIFEST) > 175


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda entry: entry["file"])
def test_words_are_where_the_manifest_says(entry: dict):
    samples = read_audio(FOLDER / entry["file"])
    assert {word["text"] for word in entry["words"]} <= VOCABULARY[entry["language"]]
    spoken = np.zeros(len(samples), bool)
    before = 0.0
    for word in entry["words"]:
        assert before <= word["start"] < word["end"] <= len(samples) / SAMPLE_RATE_HZ
        before = word["end"]
        # Encoders shift audio by up to 50 ms.
        spoken[int((word["start"] - 0.02) * SAMPLE_RATE_HZ) : int((word["end"] + 0.07) * SAMPLE_RATE_HZ)] = True
    power = np.square(samples)
    assert power[spoken].mean() > 1_000 * power[~spoken].mean()
