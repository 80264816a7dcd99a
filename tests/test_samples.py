"""The sample clips are what their manifest says."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.files import AudioFileError, read_audio
from serve_app.samples import choose_clips, demo_clip, load_clips, read_clips
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
    assert [clip.file for clip in choose_clips()] == short
    assert [clip.file for clip in choose_clips([FOLDER / short[1], FOLDER / short[0]])] == [short[1], short[0]]
    assert len(short) == len(MANIFEST) - 1


@pytest.mark.parametrize("text", [None, "[", "1", "[]", "[1]", '[{"file": "a.wav", "words": []}]', '{"a": 1}'])
def test_a_folder_without_a_list_of_clips(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    for function in (lambda: demo_clip(tmp_path), lambda: load_clips(folder=tmp_path)):
        with pytest.raises(AudioFileError, match=r"manifest\.json: expected a list of clips with their words"):
            function()


def test_clips_of_ones_own_have_their_texts_beside_them(tmp_path: Path):
    for name in ("b", "a"):
        shutil.copy(FOLDER / "hello-en.wav", tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text(f"hello {name}\n")
    shutil.copy(FOLDER / "hello-en.wav", tmp_path / "without.wav")
    clips = read_clips(tmp_path)
    assert [(clip.file, clip.text) for clip in clips] == [("a.wav", "hello a"), ("b.wav", "hello b")]
    assert math.isnan(clips[0].words[0].start_s)
    assert clips[0].seconds == pytest.approx(7.24, abs=0.01)
    assert [clip.words for clip in read_clips(tmp_path / "without.wav")] == [()]
    assert read_clips(tmp_path / "a.wav")[0].text == "hello a"


def test_a_folder_with_a_manifest_is_read_by_it():
    assert [clip.file for clip in read_clips(FOLDER)] == [entry["file"] for entry in MANIFEST]


def test_a_folder_without_texts_is_refused(tmp_path: Path):
    (tmp_path / "alone.txt").write_text("hello")
    with pytest.raises(AudioFileError, match=r"audio files with their texts beside them"):
        read_clips(tmp_path)
    with pytest.raises(AudioFileError, match="no such file"):
        read_clips(tmp_path / "none.wav")
