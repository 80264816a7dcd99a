"""The slot-indexed codec against moshi's streaming Mimi, code for code."""

import numpy as np
import pytest
import torch
from moshi.models import loaders
from moshi.utils.compile import no_compile
from moshi_reference import CPU, Case, changed

from loadtest.engine.random_checkpoint import build_mimi, noise
from serve_app.model.codec import Codec
from serve_app.model.rows import Rows


def codes_of(codec: Codec, slots: list[int], frames: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return codec.step(Rows(np.array(slots), CPU), torch.from_numpy(frames)).numpy()


def test_random_subsets_of_slots_equal_moshi(case: Case) -> None:
    reference, rng = case.reference, np.random.default_rng(1)
    codec = Codec(case.checkpoint.mimi, case.checkpoint.info.codebooks, 12)
    slots = np.sort(rng.permutation(12)[: min(8, len(reference.audio))])
    done = np.zeros(len(slots), np.int64)
    while (done < reference.audio.shape[1]).any():
        streams = np.flatnonzero((rng.random(len(slots)) < 0.4) & (done < reference.audio.shape[1]))
        if len(streams):
            codes = codes_of(codec, list(slots[streams]), reference.audio[streams, done[streams]])
            np.testing.assert_array_equal(codes, reference.codes[streams, done[streams]], f"at {done[streams]}")
            done[streams] += 1


def test_a_reset_slot_forgets(case: Case) -> None:
    reference = case.reference
    codec = Codec(case.checkpoint.mimi, case.checkpoint.info.codebooks, 3)
    for frame in range(reference.audio.shape[1] // 2):
        codes_of(codec, [0, 1, 2], reference.audio[:3, frame])
    codec.reset(np.array([0, 2]))
    for frame in range(20):
        codes = codes_of(codec, [0, 2], reference.audio[3:5, frame])
        np.testing.assert_array_equal(codes, reference.codes[3:5, frame])


def test_warming_up_leaves_the_state_of_a_step(tiny: Case) -> None:
    reference = tiny.reference
    codec = Codec(tiny.checkpoint.mimi, tiny.checkpoint.info.codebooks, 2)
    for frame in range(9):
        with torch.inference_mode():
            codec.advance(Rows(np.array([1]), CPU), torch.from_numpy(reference.audio[:1, frame]))
    np.testing.assert_array_equal(codes_of(codec, [1], reference.audio[:1, 9]), reference.codes[:1, 9])


@pytest.mark.parametrize("codebooks", [32])
def test_the_full_size_mimi_equals_moshi(codebooks: int) -> None:
    # Its published configuration, but a ring of 4 frames, so that 7 frames go around it.
    config = changed(loaders._mimi_config, transformer__context=8)
    torch.manual_seed(0)
    mimi = loaders.get_mimi(None, config, num_codebooks=codebooks)
    mimi.load_state_dict(build_mimi(config))
    audio = noise(2, 7, seed=2)
    with torch.no_grad(), no_compile(), mimi.streaming(2):
        expected = [mimi.encode(audio[:, frame, None])[:, :, 0].numpy() for frame in range(7)]
    codec = Codec(mimi, codebooks, 3)
    for frame in range(7):
        np.testing.assert_array_equal(codes_of(codec, [0, 2], audio[:, frame].numpy()), expected[frame])
