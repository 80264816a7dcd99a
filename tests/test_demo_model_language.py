"""What the language model is taught is what the service makes the right words, times and turn ends of."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.speech import FrameResult, ModelInfo
from serve_app.transcript import Token, Transcript, Word
from tools.demo_model import language, recipe
from tools.demo_model.clips import Clip, Span

FRAMES = 200
PIECES = ("<unk>", "<s>", "</s>", "<pad>", *(f"▁{word}" for word in recipe.WORDS))
INFO = ModelInfo("demo", PIECES, recipe.DELAY_FRAMES, 0, 100, 25, 8, 4)


def clip(words: list[Span], fragments: list[tuple[float, float]] | None = None) -> Clip:
    return Clip(np.zeros(0, np.float32), words, fragments or [])


def transcribed(tokens: np.ndarray) -> tuple[list[Word], list[float]]:
    """Words of a transcript, and when each is written."""
    transcript = Transcript(INFO)
    words, written = [], []
    for frame, token in enumerate(tokens):
        for event in transcript.add(FrameResult(frame, int(token), (), np.zeros(8, np.int16))):
            match event:
                case Word():
                    words.append(event)
                case Token():
                    written.append((frame + 1) * 0.08)
    return words, written


@st.composite
def spoken(draw: st.DrawFn) -> list[Span]:
    """Words as people say them: at least 0.16 s long, with pauses or without."""
    words, position = [], 0.0
    for _ in range(draw(st.integers(1, 8))):
        position += draw(st.floats(0, 1.5))
        length = draw(st.floats(0.2, 0.8))
        words.append(Span(draw(st.integers(0, len(recipe.WORDS) - 1)), position, position + length))
        position += length
    return words


@given(spoken())
def test_the_service_reads_the_words_their_times_and_soon_enough(words: list[Span]) -> None:
    heard, written = transcribed(language.tokens(clip(words), 400))
    assert [word.text for word in heard] == [recipe.WORDS[word.word] for word in words]
    for got, when, word in zip(heard, written, words, strict=True):
        assert abs(got.start_s - word.start) <= 0.12
        assert abs(got.end_s - word.end) <= 0.33
        assert when - word.start <= 0.65 + 0.08


def test_a_word_between_pauses_ends_where_it_ends() -> None:
    (got,), (when,) = transcribed(language.tokens(clip([Span(0, 1.6, 2.0)]), FRAMES))
    assert (got.start_s, got.end_s) == (pytest.approx(1.6), pytest.approx(2.0))
    assert when == pytest.approx(2.16)


def test_a_long_word_is_written_before_it_ends() -> None:
    _, (when,) = transcribed(language.tokens(clip([Span(0, 1.6, 2.8)]), FRAMES))
    assert when == pytest.approx(1.6 + 8 * 0.08)


def test_pauses_begin_behind_the_last_word_and_end_with_the_next_one() -> None:
    classes = language.pauses(clip([Span(0, 1.6, 2.0), Span(1, 6.4, 6.8)]), FRAMES)
    assert (classes[:, :20] == 0).all()
    assert (classes[:, 20:25] == 1).all()
    for head, needed in enumerate(language.PAUSE_FRAMES):
        assert np.flatnonzero(classes[head, 20:] == 0)[0] == 5 + needed - 1
        assert (classes[head, 24 + needed : 80] == 0).all()
        assert classes[head, 80] == 1
        assert classes[head].max() < language.PAUSE_CLASSES


def test_a_fragment_is_no_pause_and_no_word() -> None:
    made = clip([], [(1.6, 2.0)])
    assert language.pauses(made, FRAMES)[2, math.ceil(1.8 * 12.5)] == 1
    assert set(language.tokens(made, FRAMES)) == {3}
