"""What load-test sessions say, and how many there are when."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.script import InvalidLength, parse_length, write_script
from loadtest.shapes import SHAPES, InvalidShape, parse_steps, stages
from serve_app.samples import Clip, SpokenWord
from serve_app.speech import SAMPLE_RATE_HZ


def clip(file: str, seconds: float, *words: SpokenWord) -> Clip:
    return Clip(file, np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32), words)


CLIPS = [
    clip("a", 4.0, SpokenWord("one", 0.5, 1.0), SpokenWord("two", 2.0, 2.5)),
    clip("b", 3.0, SpokenWord("three", 1.0, 1.5)),
]


def test_without_a_length_a_session_says_one_clip():
    assert write_script(CLIPS, None, random.Random(1)) in CLIPS


def test_lengths():
    assert [parse_length(text) for text in ("", "12", "5-30", "0.5-1")] == [None, (12, 12), (5, 30), (0.5, 1)]


@pytest.mark.parametrize("text", ["x", "0", "-3", "5-3", "1-nan", "inf", "1-2-3"])
def test_wrong_lengths(text: str):
    with pytest.raises(InvalidLength, match="expected seconds, as in 12 or 5-30"):
        parse_length(text)


@given(st.floats(0.1, 60), st.integers())
def test_audio_is_cut_between_words_and_the_reference_with_it(seconds: float, seed: int):
    said = write_script(CLIPS, (seconds, seconds), random.Random(seed))
    starts, ends = [word.start_s for word in said.words], [word.end_s for word in said.words]
    assert ends[-1] <= said.seconds
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert len(said.words) == 1 or ends[-1] <= seconds
    assert said.seconds <= seconds + max(clip.seconds for clip in CLIPS)


def test_clips_without_times_stay_whole():
    untimed = clip("c", 2.0, SpokenWord("one", math.nan, math.nan))
    said = write_script([untimed], (5, 5), random.Random(1))
    assert (said.seconds, said.text) == (6.0, "one one one")


def test_steps_are_stages():
    assert parse_steps("8, 16") == [8, 16]
    plan = stages("steps", 1, 4, 0, [8, 16], 30)
    assert [(stage.users, stage.seconds, stage.spawn_rate) for stage in plan] == [(8, 30, 4), (16, 30, 4)]


@given(st.sampled_from([shape for shape in SHAPES if shape != "steps"]), st.integers(1, 500), st.floats(1, 7200))
def test_every_other_shape_takes_its_time_and_reaches_its_users(shape, users: int, seconds: float):
    plan = stages(shape, users, 4.0, seconds, [], 0)
    assert sum(stage.seconds for stage in plan) == pytest.approx(seconds)
    assert max(stage.users for stage in plan) == users
    assert all(stage.users > 0 and stage.spawn_rate > 0 for stage in plan)


@pytest.mark.parametrize("text", ["", "8,", "a", "0,4"])
def test_wrong_steps(text: str):
    with pytest.raises(InvalidShape, match="expected numbers of users with commas"):
        parse_steps(text)


def test_a_shape_needs_a_time():
    with pytest.raises(InvalidShape, match=r"ramp: expected a number of users \(-u\) and a time \(-t\)"):
        stages("ramp", 8, 4.0, 0.0, [], 0)
