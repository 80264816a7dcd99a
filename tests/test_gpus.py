"""The table of GPUs and the arithmetic behind it."""

import datetime

import pytest
from pydantic import ValidationError

from serve_app.gpus import Capacity, Gpu, ModelCost
from serve_app.settings import MODELS_FOLDER, read_gpus

ONE_B = ModelCost(weights_gigabytes=1.64, session_megabytes=98)


def test_our_table_holds_what_the_arithmetic_derives():
    gpus = read_gpus()
    for name, gpu in gpus.gpus.items():
        assert gpu.capacity.keys() == gpus.models.keys(), name
        for model, capacity in gpu.capacity.items():
            if capacity.basis == "derived":
                assert capacity.slots == gpu.derived_slots(gpus.models[model]), f"{model} on {name}"


def test_every_model_of_the_table_is_a_model_of_ours():
    assert all((MODELS_FOLDER / f"{model}.yaml").is_file() for model in read_gpus().models)


def test_a_measured_step_is_about_what_the_arithmetic_says():
    """1,000 sessions at full context on an H200 were 25 ms by its measured 4.3 TB/s; ours is more careful."""
    step_s = read_gpus().gpu("H200").step_seconds(ONE_B, 1000)
    assert 0.025 < step_s < 0.05


def test_memory_or_bandwidth_ends_first():
    wide = Gpu(memory_gigabytes=24, bandwidth_gigabytes_per_second=10_000, capacity={})
    slow = Gpu(memory_gigabytes=240, bandwidth_gigabytes_per_second=300, capacity={})
    assert wide.derived_slots(ONE_B) == wide.memory_slots(ONE_B) < wide.bandwidth_slots(ONE_B)
    assert slow.derived_slots(ONE_B) == slow.bandwidth_slots(ONE_B) < slow.memory_slots(ONE_B)
    assert slow.step_seconds(ONE_B, slow.derived_slots(ONE_B)) <= 0.064
    assert Gpu(memory_gigabytes=2, bandwidth_gigabytes_per_second=300, capacity={}).derived_slots(ONE_B) == 0


def test_without_bfloat16_everything_is_twice_as_large():
    full, half = (
        Gpu(memory_gigabytes=24, bandwidth_gigabytes_per_second=300, bfloat16=bfloat16, capacity={})
        for bfloat16 in (True, False)
    )
    assert half.memory_slots(ONE_B) < full.memory_slots(ONE_B) / 2
    assert half.bandwidth_slots(ONE_B) < full.bandwidth_slots(ONE_B) / 2


def test_who_says_measured_says_when_and_how():
    with pytest.raises(ValidationError, match="a date and a command"):
        Capacity(slots=9, basis="measured")
    assert Capacity(slots=9, basis="measured", date=datetime.date(2026, 1, 2), command="make bench")


def test_what_does_not_fit_says_what_would():
    gpus = read_gpus()
    gpus.check_fit("L4", "stt-1b-en_fr", 173)
    with pytest.raises(ValueError, match="expected at most 173 for stt-1b-en_fr in the 24 GB of an L4, got 174"):
        gpus.check_fit("L4", "stt-1b-en_fr", 174)
    with pytest.raises(ValueError, match=r"in 0\.25 of the 24 GB of an L4, got 32"):
        gpus.check_fit("L4", "stt-1b-en_fr", 32, share=0.25)
    with pytest.raises(ValueError, match="take a GPU with more memory"):
        gpus.check_fit("L4", "stt-2.6b-en", 1, share=0.1)
    gpus.check_fit("L4", "stt-1b-en_fr", 300, eight_bit=True)
    gpus.check_fit("L4", "demo", 4096)  # nothing is known of it
