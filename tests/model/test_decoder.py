"""The slot-indexed decoder against moshi's LMGen and LMModel."""

import numpy as np
import pytest
import torch
from moshi.utils.compile import no_compile
from moshi_reference import CPU, Case, moshi_modules

from serve_app.model.decoder import PREFILL_POSITIONS, Decoder
from serve_app.model.rows import Rows
from serve_app.speech import FRAME_SAMPLES, History


def step(decoder: Decoder, slots: list[int], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with torch.inference_mode():
        tokens, pauses, probabilities = decoder.step(Rows(np.array(slots), CPU), torch.from_numpy(codes))
    return tokens.numpy(), pauses.numpy(), probabilities.numpy()


def history(next_frame: int, tokens: np.ndarray, codes: np.ndarray) -> History:
    return History(
        next_frame, tokens.astype(np.int32), codes.astype(np.int16), np.zeros((0, FRAME_SAMPLES), np.float32)
    )


def test_rows_of_all_ages_in_one_batch_equal_moshi(case: Case) -> None:
    reference = case.reference
    decoder = Decoder(case.checkpoint.lm, 9)
    slots = [0, 1, 2, 4, 5, 8]
    for tick in range(reference.tokens.shape[1] + 5 * 6):
        streams = np.array([n for n in range(6) if 0 <= tick - 5 * n < reference.tokens.shape[1]])
        if not len(streams):
            continue
        frames = tick - 5 * streams
        tokens, pauses, _ = step(decoder, [slots[n] for n in streams], reference.codes[streams, frames])
        np.testing.assert_array_equal(tokens, reference.tokens[streams, frames])
        np.testing.assert_allclose(pauses, reference.pauses[streams, frames], atol=1e-5)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 5, 11, 12, 13, 40, PREFILL_POSITIONS + 1, 2 * PREFILL_POSITIONS + 30])
def test_a_history_of_any_length_equals_the_full_sequence(tiny: Case, frames: int, complete: bool) -> None:
    # The oracle is LMModel.forward_text over the whole sequence, with its own mask and its own positions.
    lm = moshi_modules(tiny.folder, torch.float32)[1]
    rng = np.random.default_rng(frames)
    tokens, codes = rng.integers(0, lm.text_card, frames), rng.integers(0, lm.card, (frames + 1, lm.n_q))
    decoder = Decoder(tiny.checkpoint.lm, 3)
    step(decoder, [0, 1, 2], codes[:1].repeat(3, 0))
    pieces = list(decoder.prefill(1, history(frames if complete else 1000, tokens[:frames], codes[:-1])))
    assert len(pieces) == -(-(frames - (not complete)) // PREFILL_POSITIONS)
    got = step(decoder, [1], codes[-1:])

    # Columns: the text token before the frame, and its codes; a complete history starts with moshi's first step.
    columns = np.concatenate([tokens[:, None], codes[1:]], 1)
    with torch.no_grad(), no_compile():
        if complete:
            initial = lm._get_initial_token()
            first = int(lm.forward_text(initial)[1].argmax())
            start = torch.from_numpy(np.concatenate([[first], codes[0]]))[None, :, None]
            sequence = torch.cat([initial, start, torch.from_numpy(columns.T)[None]], 2)
        else:
            sequence = torch.from_numpy(columns.T)[None]
        out, logits = lm.forward_text(sequence)
        pauses = torch.stack([head(out)[0, -1].softmax(-1)[0] for head in lm.extra_heads])
    assert int(got[0][0]) == int(logits[0, 0, -1].argmax())
    np.testing.assert_allclose(got[1][0], pauses.numpy(), atol=1e-5)
    assert got[2][0] == pytest.approx(float(logits[0, 0, -1].softmax(-1).max()), abs=1e-5)


def test_a_prefill_touches_no_other_slot(tiny: Case) -> None:
    reference = tiny.reference
    decoder = Decoder(tiny.checkpoint.lm, 3)
    for frame in range(20):
        step(decoder, [0, 2], reference.codes[:2, frame])
    list(decoder.prefill(1, history(20, reference.tokens[2, :20], reference.codes[2, :20])))
    for frame in range(20, 40):
        tokens, _, _ = step(decoder, [0, 1, 2], reference.codes[[0, 2, 1], frame])
        np.testing.assert_array_equal(tokens, reference.tokens[[0, 2, 1], frame])


def test_8_bit_rings_change_few_tokens(demo: Case) -> None:
    reference = demo.reference
    streams, frames = reference.tokens.shape
    decoder = Decoder(demo.checkpoint.lm, streams, eight_bit=True)
    tokens = [step(decoder, list(range(streams)), reference.codes[:, frame])[0] for frame in range(frames)]
    agreement = (np.stack(tokens, 1) == reference.tokens).mean()
    assert agreement >= 0.99, agreement


def test_the_tables_hold_no_weight_twice(tiny: Case) -> None:
    lm = moshi_modules(tiny.folder, torch.float32)[1]
    before = [emb.weight.clone() for emb in (*lm.emb, lm.text_emb)]
    Decoder(lm, 1)
    after = [emb.weight for emb in (*lm.emb, lm.text_emb)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert len({weight.untyped_storage().data_ptr() for weight in after}) == 1
