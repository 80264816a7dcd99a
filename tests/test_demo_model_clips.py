"""Training clips: what they are labelled with is what can be heard."""

import numpy as np
import pytest

from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ
from tools.demo_model.clips import DENSE, HEARD_SHARE, SPARSE, Clip, Gaps, compose, tones
from tools.demo_model.synthesis import Said, Utterances

FRAMES = 250
WORD_S = 0.4


@pytest.fixture(scope="module")
def utterances() -> Utterances:
    """Tones instead of speech: two words of 0.4 s, 0.2 s apart."""
    tone = (20_000 * np.sin(np.arange(round(WORD_S * SAMPLE_RATE_HZ)) / 5)).astype(np.int16)
    gap = np.zeros(round(0.2 * SAMPLE_RATE_HZ), np.int16)
    words = ((3, 0.0, WORD_S), (4, 0.6, 0.6 + WORD_S))
    return Utterances.of([Said(np.concatenate([tone, gap, tone]), words, "en", 140, False)] * 3)


@pytest.fixture(scope="module", params=[DENSE, SPARSE], ids=["dense", "sparse"])
def made(request: pytest.FixtureRequest, utterances: Utterances) -> list[Clip]:
    return [compose(np.random.default_rng(seed), utterances, FRAMES, request.param) for seed in range(40)]


def test_words_come_in_order_and_inside_the_clip(made: list[Clip]) -> None:
    assert any(clip.words for clip in made)
    for clip in made:
        assert clip.samples.shape == (FRAMES * FRAME_SAMPLES,)
        assert clip.samples.dtype == np.float32
        assert np.abs(clip.samples).max() <= 1
        assert [word.start for word in clip.words] == sorted(word.start for word in clip.words)
        assert all(0 <= word.start < FRAMES * 0.08 for word in clip.words)


def test_a_word_is_one_only_where_nearly_all_of_it_is_heard(made: list[Clip]) -> None:
    for clip in made:
        assert all(word.end - word.start >= (2 * HEARD_SHARE - 1) * WORD_S - 1e-3 for word in clip.words)
        assert all(end - start < WORD_S for start, end in clip.fragments)
    assert any(clip.fragments for clip in made)


def test_the_same_seed_makes_the_same_clip(utterances: Utterances) -> None:
    first, second = (compose(np.random.default_rng(7), utterances, FRAMES, SPARSE) for _ in range(2))
    assert np.array_equal(first.samples, second.samples)
    assert first.words == second.words


def test_long_pauses_last_longer_than_the_models_context(utterances: Utterances) -> None:
    clip = compose(np.random.default_rng(1), utterances, 4 * FRAMES, Gaps((1.0,), ((10.0, 11.0),)))
    starts = [word.start for word in clip.words]
    assert max(np.diff(starts)) > 8


def test_tones_are_as_long_as_asked_and_not_too_loud() -> None:
    samples = tones(np.random.default_rng(0), 3.0)
    assert len(samples) == 3 * SAMPLE_RATE_HZ
    assert 0.01 < np.abs(samples).max() <= 0.5


def test_utterances_survive_a_file(utterances: Utterances, tmp_path) -> None:
    utterances.save(tmp_path)
    loaded = Utterances.load(tmp_path)
    assert len(loaded) == len(utterances) == 3
    for one, other in zip(loaded[1], utterances[1], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
