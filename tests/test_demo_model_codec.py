"""The codec's fixed filters, and what it must learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from serve_app.model.codec import Codec
from serve_app.model.rows import Rows
from serve_app.speech import FRAME_SAMPLES
from tools.demo_model import codec, recipe, training
from tools.demo_model.clips import Clip, Span
from tools.demo_model.codec import FIXED_STAGES, NOT_SCORED, STATES


def test_the_bank_in_moshis_modules_is_the_matrix_product_of_the_training() -> None:
    bank = 8 * codec.gabor_bank()
    mimi = codec.new_mimi(codec.CONFIG, bank)
    samples = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 4 * FRAME_SAMPLES)).astype(np.float32))
    samples[:, :200] = 0
    with torch.no_grad():
        hidden = samples[:, None]
        for stage in list(mimi.encoder.model)[:FIXED_STAGES]:
            hidden = stage(hidden)
    torch.testing.assert_close(hidden, F.elu(codec.filtered(bank, samples)), rtol=1e-4, atol=1e-3)


def test_the_service_streams_it() -> None:
    torch.manual_seed(0)
    mimi = codec.new_mimi(codec.CONFIG, codec.gabor_bank()).eval()
    streaming = Codec(mimi, 8, 2)
    frames = torch.rand(2, FRAME_SAMPLES)
    with torch.inference_mode():
        codes = streaming.step(Rows(np.arange(2), frames.device), frames)
    assert codes.shape == (2, 8)


def test_each_filter_answers_most_to_its_own_band() -> None:
    bank = codec.gabor_bank()
    spectrum = torch.fft.rfft(bank, 4096).abs()
    peaks = spectrum.argmax(1)
    assert peaks[0::2].tolist() == sorted(peaks[0::2].tolist())
    assert spectrum[:, 0].max() < 1e-3  # direct current is no sound


def test_scaled_filters_answer_to_speech_with_known_strength() -> None:
    samples = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 24_000)).astype(np.float32))
    answers = codec.filtered(codec.bank_gains(codec.gabor_bank(), samples), samples)
    torch.testing.assert_close(answers.std(dim=(0, 2)), torch.tensor([5.0, 1.2]).repeat(codec.BANDS))


def test_states_of_a_word_rise_while_it_is_said_and_fragments_do_not_count() -> None:
    word = len(recipe.WORDS) - 1
    got = codec.states(Clip(np.zeros(0, np.float32), [Span(word, 0.8, 1.2)], [(0.0, 0.2)]), 20).tolist()
    assert got[:3] == [NOT_SCORED] * 3
    assert got[3:10] == [0] * 7
    said = [state - 1 - word * STATES for state in got[10:15]]
    assert said == sorted(said)
    assert said[0] == 0
    assert said[-1] == STATES - 1
    assert got[15:] == [0] * 5


def random_batch() -> codec.Batch:
    parts = (
        torch.rand(4, 2 * codec.BANDS, 20 * codec.POSITIONS),
        torch.rand(4, 20, codec.BANDS * codec.LOUDNESS_PARTS),
        torch.randint(0, 9, (4, 20)),
    )
    return codec.Batch(*parts)


@pytest.mark.parametrize("quantize", [False, True])
def test_what_learns_gets_gradients_and_the_bank_gets_none(quantize: bool) -> None:
    torch.manual_seed(0)
    learner = codec.CodecTraining(codec.gabor_bank())
    loss, _ = learner.loss(random_batch(), quantize)
    loss.backward()
    learning = {id(weight) for weight in learner.learning()}
    bank = [stage.conv.conv.weight for stage in list(learner.mimi.encoder.model)[:FIXED_STAGES:2]]
    assert not learning & {id(weight) for weight in bank}
    assert all(weight.grad is not None for weight in learner.mimi.encoder_transformer.parameters())
    assert not any(average.requires_grad for average in learner.mimi.quantizer.buffers())  # or each step's graph stays


class Interrupted(Exception):
    """Someone pressed control-C."""


def test_a_resumed_training_replaces_unused_codes_when_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training, "DEVICE", torch.device("cpu"))

    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        learner = codec.CodecTraining(codec.gabor_bank())

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                raise Interrupted
            return learner.loss(random_batch(), quantize=True)

        folder.mkdir(exist_ok=True)
        training.train(
            "codec", learner, learner.learning(), loss_of, steps=8, rate=1e-3, decay=0, seed=5, folder=folder
        )
        return learner.mimi.quantizer.state_dict()

    with pytest.raises(Interrupted):
        run(tmp_path / "a", stop_at=3)
    resumed, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
