"""Scores: what counts as which error, and when."""

import numpy as np
import pytest

from serve_app.transcript import Word
from tests.system_packages import require_library
from tools.demo_model import synthesis
from tools.demo_model.evaluate import Heard, Spoken, Stream, conversations, cut_in, pause_at_end, score

SAID = [Spoken("one", 1.0, 1.4, "en", 140), Spoken("two", 1.6, 1.9, "en", 140), Spoken("six", 2.0, 2.4, "fr", 160)]


def stream(said: list[Spoken] = SAID) -> Stream:
    return Stream(np.zeros(8 * 24_000, np.float32), said, [(1.0, 2.4)])


def heard(*words: tuple[str, float], turn_ends: tuple[float, ...] = (3.2,)) -> Heard:
    told = [Word(text, start, start + 0.3) for text, start in words]
    return Heard(told, [start + 0.5 for _, start in words], list(turn_ends), np.zeros((100, 4), np.float32))


def test_all_right() -> None:
    got = score([stream()], [heard(("one", 1.04), ("two", 1.6), ("six", 2.0))])
    assert (got.words, got.errors, got.wer) == (3, 0, 0)
    assert got.early_s == pytest.approx([0.04, 0, 0])
    assert got.written_s == pytest.approx([0.54, 0.5, 0.5])
    assert (got.ends, got.missed_ends, got.false_ends, got.utterances) == (1, 0, 0, 1)
    assert got.end_delays_s == pytest.approx([0.8])


def test_errors_by_kind_word_voice_and_rate() -> None:
    got = score([stream()], [heard(("one", 1.0), ("ten", 1.6), ("six", 2.0), ("no", 3.0))])
    assert (got.substituted, got.inserted, got.deleted) == (1, 1, 0)
    assert got.wer == pytest.approx(2 / 3)
    assert got.confused["two", "ten"] == got.confused["", "no"] == 1
    assert (got.by_voice["en", True], got.by_voice["en", False]) == (1, 1)
    assert (got.by_rate[160, True], got.by_rate[160, False]) == (1, 0)


@pytest.mark.parametrize(("said", "told", "deleted", "inserted"), [(SAID, (), 3, 0), ([], (("one", 1.0),), 0, 1)])
def test_silence_on_either_side(said: list[Spoken], told: tuple, deleted: int, inserted: int) -> None:
    got = score([stream(said)], [heard(*told)])
    assert (got.deleted, got.inserted) == (deleted, inserted)


def test_turns_that_end_too_soon_or_never() -> None:
    got = score([stream(), stream()], [heard(turn_ends=()), heard(turn_ends=(2.0, 3.0))])
    assert (got.missed_ends, got.false_ends, got.ends) == (1, 1, 2)


def test_the_pause_at_the_end_is_that_of_the_last_frame_before_the_silence_that_is_added() -> None:
    pauses = np.arange(120, dtype=np.float32)[:, None].repeat(4, axis=1)
    for samples, last in ((8 * 24_000, 99), (8 * 24_000 + 1_000, 99), (8 * 24_000 + 1_920, 100)):
        assert pause_at_end(Stream(np.zeros(samples, np.float32)), Heard([], [], [], pauses), 2) == last


def test_streams_to_test_with_say_what_they_say_and_never_with_a_trained_voice() -> None:
    require_library("espeak-ng", "libespeak-ng1")
    vocabulary = ("one", "merci")
    streams = [
        *conversations(1, synthesis.unseen_speaker, 12, vocabulary),
        *cut_in(1, synthesis.unseen_speaker, vocabulary, 3),
    ]
    assert sum(len(one.words) for one in streams[:-3]) >= 12
    for one in streams:
        assert {word.text for word in one.words} <= set(vocabulary)
        assert one.words[-1].end <= one.seconds
        assert all(word.voice.endswith(("+m4", "+m7", "+f3", "+Andrea", "+ed", "+grandpa")) for word in one.words)
    assert len(conversations(1, synthesis.supported_speaker, 1, vocabulary, seconds=30)[0].samples) >= 30 * 24_000
