"""What was heard, held against what was said."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.measuring.hearing import HeardWord, Hearing, compare, differences, word_errors
from serve_app.samples import SpokenWord

SAID = (SpokenWord("one", 1.0, 1.4), SpokenWord("two", 2.0, 2.4), SpokenWord("three", 3.0, 3.4))
UNTIMED = tuple(SpokenWord(word.text, math.nan, math.nan) for word in SAID)

WORDS = st.lists(st.sampled_from(["one", "two", "three", "One,", "…"]), max_size=8)


def hearing(*pieces: tuple[str, float]) -> Hearing:
    heard = Hearing()
    for text, at_s in pieces:
        heard.add_text(text, at_s)
    return heard


def test_pieces_of_text_make_words_that_are_complete_with_their_last_piece():
    heard = hearing(("on", 1.5), ("e", 1.6), (" ", 1.9), (" two three", 3.5), (" fo", 4.0), ("ur", 4.1))
    assert heard.words == [
        HeardWord("one", 1.6), HeardWord("two", 3.5), HeardWord("three", 3.5), HeardWord("four", 4.1),
    ]  # fmt: skip
    assert heard.first_text_at_s == 1.5
    assert heard.text == "one two three four"


def test_any_white_space_parts_words():
    assert [word.text for word in hearing((" a", 0), (" ", 0), ("", 0), ("1", 0), ("b ", 0), ("c", 0)).words] == [
        "a", "1b", "c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("hello two", "Hello, two.", (0, 2)),
        ("it's two", "It’s — two", (0, 2)),
        ("hello two", "hello", (1, 2)),
        ("", "hello", (1, 0)),
        ("", "…", (0, 0)),
    ],
)
def test_case_and_punctuation_are_no_word_errors(said: str, heard: str, errors: tuple[int, int]):
    assert word_errors(said, heard) == errors


def test_delays_count_from_the_end_of_each_word_and_the_first_token_from_the_start_of_the_first():
    compared = compare(SAID, hearing((" One", 1.5), (" two.", 2.5), (" three", 3.7)))
    assert (compared.words, compared.errors, compared.wer) == (3, 0, 0.0)
    assert compared.first_token_s == pytest.approx(0.5)
    assert [word.delay_s for word in compared.word_delays] == pytest.approx([0.1, 0.1, 0.3])
    assert [word.at_s for word in compared.word_delays] == [1.5, 2.5, 3.7]


def test_at_another_speed_the_clock_runs_faster():
    compared = compare(SAID[:1], hearing((" one", 0.9)), rtf=2.0)
    assert compared.first_token_s == pytest.approx(0.4)
    assert [word.delay_s for word in compared.word_delays] == pytest.approx([0.2])


def test_a_word_that_comes_very_late_keeps_its_delay():
    compared = compare(SAID, hearing((" one", 11.4), (" two", 12.4), (" three", 13.4)))
    assert [word.delay_s for word in compared.word_delays] == pytest.approx([10, 10, 10])


def test_wrong_words_are_errors_and_have_no_delay():
    compared = compare(SAID, hearing((" one", 1.5), (" too", 2.5), (" three", 3.5), (" four", 4.0)))
    assert (compared.errors, len(compared.word_delays)) == (2, 2)
    assert compare(SAID, Hearing()).errors == 3


def test_places_that_the_reference_does_not_know_are_the_services():
    heard = hearing((" one", 1.9))
    for _ in range(2):  # one more than there are words has no effect
        heard.add_place(1.05, 1.45)
    compared = compare(UNTIMED, heard)
    assert compared.first_token_s == pytest.approx(0.85)
    assert [word.delay_s for word in compared.word_delays] == pytest.approx([0.45])
    assert compare(UNTIMED, hearing((" one", 1.5))).word_delays == ()
    unknown = compare((), heard)
    assert (unknown.words, unknown.errors, unknown.wer, len(unknown.word_delays)) == (0, 0, None, 1)


@given(WORDS, WORDS)
def test_every_word_is_shown_once_and_in_order(said: list[str], heard: list[str]):
    spoken = [SpokenWord(text, math.nan, math.nan) for text in said]
    pairs = differences(spoken, [HeardWord(text, 0.0) for text in heard])
    assert [left for left, _ in pairs if left] == said
    assert [right for _, right in pairs if right] == heard
    hearing = Hearing()
    for text in heard:
        hearing.add_text(f" {text}", 0.0)
    compared = compare(spoken, hearing)
    assert 0 <= compared.errors <= max(len(said), len(heard))
