"""How many slots an engine promises: from steps of known length, and on the real model."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app import settings as settings_module
from serve_app.engine.batcher import Batcher
from serve_app.engine.loading import load_model
from serve_app.engine.sizing import MEMORY_SHARE, find_slots, free_host_bytes, slots_in_memory
from serve_app.errors import AtCapacity
from serve_app.settings import MOST_SLOTS
from serve_app.speech import FRAME_SAMPLES

LONGEST = 0.048


class Steps:
    """Steps of a known length; counts what was tried."""

    def __init__(self, fixed: float, per_slot: float) -> None:
        self.fixed, self.per_slot = fixed, per_slot
        self.tried: list[int] = []

    def __call__(self, slots: int) -> float:
        self.tried.append(slots)
        return self.fixed + self.per_slot * slots


@given(fixed=st.floats(0.0001, 0.06), per_slot=st.floats(1e-6, 0.05), most=st.integers(1, MOST_SLOTS))
def test_the_slots_fit_and_were_tried(fixed: float, per_slot: float, most: int) -> None:
    steps = Steps(fixed, per_slot)
    sizing = find_slots(steps, most, LONGEST)
    assert 1 <= sizing.slots <= most
    assert set(sizing.step_seconds) == set(steps.tried)
    assert max(steps.tried) <= most
    assert len(steps.tried) <= 15
    if sizing.bound == "nothing in real time":
        assert sizing.slots == 1
        assert steps(1) > LONGEST
        return
    assert sizing.step_seconds[sizing.slots] <= LONGEST
    if sizing.bound == "memory":
        assert sizing.slots == most
    else:
        one_more = max(sizing.slots + 1, round(1.1 * sizing.slots))
        assert steps(one_more) > LONGEST, "a tenth more would have fitted"


def test_memory_bounds_what_a_quick_model_promises() -> None:
    assert find_slots(Steps(0.001, 1e-6), 100, LONGEST).slots == 100
    assert slots_in_memory(1000 * 2**20, 2**20) == int(1000 * MEMORY_SHARE)
    assert slots_in_memory(10, 2**20) == 1
    assert slots_in_memory(2**50, 2**20) == MOST_SLOTS


def test_a_slow_start_ends_with_what_was_seen_to_fit() -> None:
    steps = Steps(0.001, 0.0001)
    sizing = find_slots(steps, 1000, LONGEST, lambda: len(steps.tried) >= 3)
    assert (sizing.slots, sizing.bound) == (16, "time to measure")


def test_free_memory_is_some_and_not_more_than_the_machine_has() -> None:
    assert 2**20 < free_host_bytes() < 2**50


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Other tests run beside this one: threads that wait for each other would measure those."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_an_engine_that_chose_its_slots_takes_so_many_streams_and_no_more() -> None:
    settings = settings_module.from_args({"engine": {"slots": "auto", "torch_threads": 1}}, environ={})
    model = load_model(settings)
    assert 1 <= model.slots <= MOST_SLOTS
    batcher = Batcher(
        model, on_results=lambda results: None, on_failure=lambda streams, error: None, settings=settings.engine
    )
    for _ in range(model.slots):
        batcher.open()
    with pytest.raises(AtCapacity, match=f"all {model.slots} slots"):
        batcher.open()
    assert batcher.load().slots == model.slots


def test_measuring_leaves_no_trace_in_the_model(demo_model, clip) -> None:
    every, frames = np.arange(demo_model.slots), clip.frames[: demo_model.slots]
    demo_model.reset(every)
    expected = [demo_model.step(every, np.roll(frames, turn, 0)).tokens.tolist() for turn in range(12)]
    demo_model.pretend_full(every)
    demo_model.step(every, np.zeros((demo_model.slots, FRAME_SAMPLES), np.float32))
    demo_model.reset(every)
    assert [demo_model.step(every, np.roll(frames, turn, 0)).tokens.tolist() for turn in range(12)] == expected
