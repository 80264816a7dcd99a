"""Streams in simulated time: every frame once, in order, in the batches that the batcher's rule makes."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.loads import ACTIVE_SHARE, Load, Timeline, loads
from loadtest.engine.measuring import LEAD_FRAMES
from serve_app.speech import FRAME_SECONDS


def load_named(name: str, slots: int) -> Load:
    return next(load for load in loads(slots) if load.name == name)


def play(load: Load, width: int, step_s: float, rounds: int = 3, max_wait_s: float = 0.005):
    """The batches of rounds of four frames, and the timeline afterwards."""
    timeline, batches = Timeline(load, width, max_wait_s), []

    def step(slots, frames) -> float:
        batches.append((slots.tolist(), frames.tolist()))
        return step_s

    for number in range(1, rounds + 1):
        timeline.run(4 * number, step)
    return batches, timeline


@given(
    name=st.sampled_from(["aligned", "random", "sparse"]),
    slots=st.integers(1, 20),
    step_s=st.floats(1e-4, 0.3),
    rounds=st.integers(1, 4),
)
def test_every_stream_has_every_frame_once_and_in_order(name: str, slots: int, step_s: float, rounds: int) -> None:
    load = load_named(name, slots)
    batches, timeline = play(load, slots, step_s, rounds)
    heard = defaultdict(list)
    for taken, frames in batches:
        assert taken == sorted(set(taken)), "at most one frame of a slot, in ascending order"
        for slot, frame in zip(taken, frames, strict=True):
            heard[slot].append(frame)
    assert sorted(heard) == load.slots.tolist()
    assert all(frames == list(range(len(frames))) for frames in heard.values())
    assert all(4 * rounds <= len(frames) <= 4 * rounds + LEAD_FRAMES for frames in heard.values())
    assert len(timeline.waits_and_steps_s) == sum(map(len, heard.values()))
    assert min(timeline.waits_and_steps_s) >= step_s * 0.999


def test_aligned_frames_share_one_step() -> None:
    batches, timeline = play(load_named("aligned", 6), 6, 0.01)
    assert [taken for taken, _ in batches] == [list(range(6))] * 12
    assert timeline.waits_and_steps_s == pytest.approx([0.01] * 72)


def test_frames_at_random_phases_do_not_wait_for_a_quick_model_and_share_steps_of_a_slow_one() -> None:
    quick, timeline = play(load_named("random", 6), 6, 1e-4)
    assert max(len(taken) for taken, _ in quick) == 1
    assert max(timeline.waits_and_steps_s) < 0.005 + 3e-4
    slow, timeline = play(load_named("random", 6), 6, 0.06)
    assert max(len(taken) for taken, _ in slow) > 3
    assert max(timeline.waits_and_steps_s) <= 2 * 0.06 + 0.005


def test_a_busy_model_that_may_wait_longer_makes_fewer_steps() -> None:
    impatient, _ = play(load_named("random", 16), 16, 0.01)
    patient, timeline = play(load_named("random", 16), 16, 0.01, max_wait_s=0.03)
    assert len(patient) < len(impatient)
    assert max(timeline.waits_and_steps_s) <= 0.03 + 2 * 0.01 + 1e-6


def test_a_model_that_is_too_slow_falls_behind_more_and_more() -> None:
    _, timeline = play(load_named("aligned", 2), 2, 2 * FRAME_SECONDS, rounds=5)
    waits = np.array(timeline.waits_and_steps_s)
    assert (np.diff(waits[::2]) > 0).all()


def test_most_slots_of_a_sparse_load_wait() -> None:
    load = load_named("sparse", 100)
    assert len(load.slots) == round(100 * ACTIVE_SHARE)
    assert (np.diff(load.slots) > 0).all()
    assert np.array_equal(load.slots, load_named("sparse", 100).slots), "the same for whoever is measured"


def test_phases_are_the_same_for_whoever_is_measured() -> None:
    phases = load_named("random", 50).phases_s
    assert np.array_equal(phases, load_named("random", 50).phases_s)
    assert phases.min() >= 0
    assert phases.max() < FRAME_SECONDS
