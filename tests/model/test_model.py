"""SpeechModel against moshi: any subset of slots, in any order, at any age, moved at any frame."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moshi_reference import CPU, DEMO, Case, transcribe
from player import Player

from serve_app.model import SpeechModel, StepResult, load_checkpoint
from serve_app.speech import FRAME_SAMPLES, History


@pytest.mark.parametrize("width", [1, 2, 7, 32])
def test_batches_of_any_width_equal_moshi_past_the_end_of_the_context(case: Case, width: int) -> None:
    player = Player(case, case.model(width))
    width = min(width, player.streams)
    assert player.frames > case.checkpoint.info.context_frames
    for slot in range(width):
        player.start(slot, (5 * width + slot) % player.streams)
    for _ in range(player.frames):
        player.step(range(width))


def test_staggered_starts_and_slots_used_again(case: Case) -> None:
    player = Player(case, case.model(5))
    waiting = list(range(min(player.streams, 12)))
    tick = 0
    while waiting or player.ready(range(5)):
        for slot in range(5):
            if waiting and slot not in player.ready(range(5)) and tick >= 3 * slot:
                player.start(slot, waiting.pop())
        player.step([slot for slot in range(5) if (tick + slot) % 4])
        tick += 1


def test_sparse_and_shuffled_slots(tiny: Case) -> None:
    player, rng = Player(tiny, tiny.model(64)), np.random.default_rng(3)
    for stream, slot in enumerate(rng.permutation(64)[:32]):
        player.start(int(slot), stream)
    for tick in range(player.frames):
        slots = rng.permutation(list(player.playing))
        player.step([int(slot) for slot in slots[: (32, 20, 9, 3, 1)[tick % 5]]])


@pytest.mark.parametrize("at", [0, 1, 2, 5, 11, 12, 13, 30])
def test_a_complete_history_moves_a_stream_at_any_frame(case: Case, at: int) -> None:
    player = Player(case, case.model(6))
    for slot in range(3):
        player.start(slot, slot)
    for tick in range(at + 2):
        player.step([0, 1, 2] if tick >= 2 else [2])  # slot 2 is two frames ahead
    player.start(3, 3)
    player.move({0: 4, 1: 1, 2: 5}, stepping=[3])
    for _ in range(player.frames):
        player.step(range(6))


def test_the_last_frames_are_enough_where_they_cover_what_layers_can_see(tiny: Case) -> None:
    # 3 layers of 12 positions, and 2 layers of 5 frames: nothing older reaches the next output.
    player = Player(tiny, tiny.model(4))
    player.start(0, 0)
    for _ in range(48):
        player.step([0])
    player.move({0: 2}, kept=3 * 12 + 1, heard=2 * 5 + 2)
    for _ in range(player.frames - 48):
        player.step([2])


def test_the_demo_model_needs_its_context_of_tokens_and_twice_its_codec_context_of_audio(demo: Case) -> None:
    info = demo.checkpoint.info
    for stream in range(2):
        player = Player(demo, demo.model(2))
        player.start(0, stream)
        for _ in range(60 + 15 * stream):
            player.step([0])
        player.move({0: 1}, kept=info.context_frames, heard=2 * info.codec_context_frames)
        for _ in range(player.frames):
            player.step(player.ready([1]))


def test_a_new_stream_from_an_empty_history(tiny: Case) -> None:
    player = Player(tiny, tiny.model(2))
    player.start(1, 4)
    player.step([1])
    player.playing[0] = (5, 0)
    player.move({0: 1})
    for _ in range(player.frames):
        player.step([1])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_schedule_of_starts_steps_and_moves_equals_moshi(tiny: Case, data: st.DataObject) -> None:
    slots = 7
    player = Player(tiny, tiny.model(slots))
    slot = st.integers(0, slots - 1)
    for _ in range(data.draw(st.integers(5, 20))):
        action = data.draw(st.sampled_from(["start", "run", "run", "run", "move"]))
        if action == "start":
            player.start(data.draw(slot), data.draw(st.integers(0, player.streams - 1)))
        elif action == "run":
            chosen = data.draw(st.permutations(range(slots)))[: data.draw(st.integers(1, slots))]
            for _ in range(data.draw(st.integers(1, 14))):
                player.step(player.ready(chosen))
        else:
            moving = data.draw(st.lists(slot, unique=True, max_size=3))
            moving = [one for one in moving if one in player.playing]
            targets = data.draw(st.permutations(range(slots)))[: len(moving)]
            others = data.draw(st.sets(slot))
            player.move(
                dict(zip(moving, targets, strict=True)), [one for one in others if one not in (*moving, *targets)]
            )
    player.step(player.ready(range(slots)))


def test_bfloat16_equals_moshi_in_bfloat16(demo: Case) -> None:
    # moshi runs the language model in bfloat16 and the codec in float32, and so do we.
    expected = transcribe(DEMO, torch.from_numpy(demo.reference.audio), torch.bfloat16)
    model = SpeechModel(load_checkpoint(str(DEMO), device=CPU, dtype=torch.bfloat16), len(expected.tokens))
    results = [model.step(np.arange(model.slots), frames) for frames in expected.audio.swapaxes(0, 1)]
    tokens = np.stack([result.tokens for result in results], 1)
    np.testing.assert_array_equal(np.stack([result.codes for result in results], 1), expected.codes)
    assert (tokens == expected.tokens).mean() >= 0.995
    pauses = np.stack([result.pauses for result in results], 1)
    assert np.abs(pauses - expected.pauses).mean() < 0.005  # a bfloat16 has 8 bits


def test_result_types(tiny: Case, case_named: Any) -> None:
    for case, heads in ((tiny, 4), (case_named("one position per frame"), 0)):
        for rows in (0, 2):
            result = case.model(3).step(np.arange(rows), np.zeros((rows, FRAME_SAMPLES), np.float32))
            assert isinstance(result, StepResult)
            codebooks = case.checkpoint.info.codebooks
            assert [(array.dtype, array.shape) for array in result] == [
                (np.int32, (rows,)),
                (np.int16, (rows, codebooks)),
                (np.float32, (rows, heads)),
                (np.float32, (rows,)),
            ]


def test_warm_up_leaves_new_streams(tiny: Case) -> None:
    player = Player(tiny, tiny.model(3))
    player.start(0, 0)
    player.step([0])
    player.model.warm_up()
    for slot in range(3):
        player.playing[slot] = (slot, 0)
    for _ in range(15):
        player.step(range(3))


@pytest.mark.parametrize(
    ("slots", "shape", "message"),
    [
        ([0, 3], (2, 1920), "slots from 0 to 2, got 3"),
        ([-1], (1, 1920), "slots from 0 to 2, got -1"),
        ([1, 2, 1], (3, 1920), "distinct slots, got slot 1 twice"),
        ([0, 1], (2, 960), r"frames \[2, 1920\], got \[2, 960\]"),
        ([0, 1], (1, 1920), r"frames \[2, 1920\], got \[1, 1920\]"),
        ([[0]], (1, 1920), r"slots int64 \[n\], got int64 \[1, 1\]"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(tiny: Case, slots: Any, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.model(3).step(np.array(slots, np.int64), np.zeros(shape, np.float32))


def test_a_model_without_slots_is_refused(tiny: Case) -> None:
    with pytest.raises(ValueError, match="at least 1 slot, got 0"):
        tiny.model(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((3, 4), np.int16)}, r"tokens \[n\] and codes \[n, 4\], got \[2\] and \[3, 4\]"),
        ({"codes": np.zeros((2, 5), np.int16)}, r"codes \[n, 4\], got \[2\] and \[2, 5\]"),
        ({"codes": np.full((2, 4), 32, np.int16)}, "codes from 0 to 31, got 32 to 32"),
        ({"tokens": np.array([3, 40], np.int32)}, "tokens from 0 to 39, got 3 to 40"),
        ({"audio": np.zeros((1, 5), np.float32)}, r"audio \[m, 1920\], got \[1, 5\]"),
        ({"next_frame": 1}, "at most 1 frames of history, got 2 tokens"),
    ],
)
def test_a_history_that_makes_no_sense_is_refused_before_anything_moves(
    tiny: Case, changes: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {
        "next_frame": 2,
        "tokens": np.zeros(2, np.int32),
        "codes": np.zeros((2, 4), np.int16),
        "audio": np.zeros((1, FRAME_SAMPLES), np.float32),
    }
    model = tiny.model(2)
    with pytest.raises(ValueError, match=message):
        model.prefill([1], [History(**{**good, **changes})])
    with pytest.raises(ValueError, match="a history for each slot, got 2 slots, 1 histories"):
        model.prefill([0, 1], [History(**good)])
    assert len(list(model.prefill([1], [History(**good)]))) >= 1


def test_the_work_of_a_prefill_comes_in_bounded_pieces(tiny: Case) -> None:
    rng = np.random.default_rng(0)
    long = History(
        500,
        rng.integers(0, 40, 400).astype(np.int32),
        rng.integers(0, 32, (400, 4)).astype(np.int16),
        np.zeros((20, FRAME_SAMPLES), np.float32),
    )
    pieces = list(tiny.model(4).prefill([3, 0], [long, long]))
    assert len(pieces) == 20 + 2 * 4  # frames of audio, both streams together; then 128 positions at a time


def test_neither_ray_nor_torch_compile_is_used() -> None:
    script = f"""
import sys
import numpy as np, torch
def refuse(*args, **kwargs):
    raise AssertionError("torch.compile was called")
torch.compile = refuse
from serve_app.model import SpeechModel, load_checkpoint
model = SpeechModel(load_checkpoint({str(DEMO)!r}, device=torch.device("cpu"), dtype=torch.float32), 2)
model.step(np.array([1]), np.zeros((1, 1920), np.float32))
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=DEMO.parents[2], timeout=60)
