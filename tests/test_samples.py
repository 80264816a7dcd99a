"""The sample clips are what their manifest says."""

import json
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.files import AudioFileError, read_audio
from serve_app.samples import SpokenWord, demo_clip, load_clips, word_delays_s
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


def test_the_demo_clip_is_the_first():
    clip = demo_clip()
    assert clip.file == MANIFEST[0]["file"]
    assert clip.text.split() == [word["text"] for word in MANIFEST[0]["words"]]
    assert np.array_equal(clip.samples, read_audio(FOLDER / clip.file))


def test_clips_up_to_a_length():
    short = [entry["file"] for entry in MANIFEST if entry["words"][-1]["end"] < 30]
    assert [clip.file for clip in load_clips(30)] == short
    assert len(short) == len(MANIFEST) - 1


@pytest.mark.parametrize("text", [None, "[", "1", "[]", "[1]", '[{"file": "a.wav", "words": []}]', '{"a": 1}'])
def test_a_folder_without_a_list_of_clips(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    for function in (lambda: demo_clip(tmp_path), lambda: load_clips(folder=tmp_path)):
        with pytest.raises(AudioFileError, match=r"manifest\.json: expected a list of clips with their words"):
            function()


def test_a_heard_word_belongs_to_the_spoken_one_it_follows():
    words = [SpokenWord("one", 1.0, 1.4), SpokenWord("two", 2.0, 2.4), SpokenWord("one", 3.0, 3.4)]
    heard = [("two", 0.5), ("one", 1.5), ("two", 4.0), ("one", 3.75)]
    assert word_delays_s(words, heard) == [0.5, 0.75]
    assert word_delays_s(words, []) == []
