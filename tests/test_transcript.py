"""Tokens, words and turn ends from frame results."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.speech import FrameResult, ModelInfo
from serve_app.transcript import (
    MAX_END_WAIT_FRAMES,
    MAX_WORD_CHARACTERS,
    Event,
    Token,
    Transcript,
    TurnEnd,
    Vocabulary,
    Word,
    WordStart,
)

PIECES = (
    "<unk>", "<s>", "</s>", "<pad>", "▁hello", "▁wor", "ld", ",", "▁", "<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>",
    "<0x20>", "▁été",
)  # fmt: skip
END, PAD, HELLO, WOR, LD, COMMA, SPACE, C3, A9, E2, X82, XAC, BYTE_SPACE, ETE = 0, 3, *range(4, 16)
NO_CODES = np.zeros(0, dtype=np.int16)

TOKENS = st.lists(st.sampled_from([*range(len(PIECES)), END, PAD, PAD, PAD, 9999]), max_size=120)
DELAYS = st.sampled_from([0, 6, 32])


def info(delay_frames: int = 6, pause_heads: int = 4) -> ModelInfo:
    return ModelInfo(
        name="test",
        pieces=PIECES,
        delay_frames=delay_frames,
        silence_prefix_frames=0,
        context_frames=100,
        codec_context_frames=10,
        codebooks=0,
        pause_heads=pause_heads,
    )


def results(tokens: Sequence[int], pauses: Sequence[float] = ()) -> list[FrameResult]:
    """Frame results from frame 0; `pauses` are head 2's, the others say the opposite."""
    heads = [(1 - pause, 1 - pause, pause, 1 - pause) for pause in pauses] or [()] * len(tokens)
    return [FrameResult(i, token, head, NO_CODES) for i, (token, head) in enumerate(zip(tokens, heads, strict=True))]


def run(transcript: Transcript, tokens: Sequence[int], pauses: Sequence[float] = (), end_s: float = 1e9) -> list[Event]:
    events = [event for result in results(tokens, pauses) for event in transcript.add(result)]
    return events + transcript.finish(end_s)


def words_of(events: Sequence[Event]) -> list[Word]:
    return [event for event in events if isinstance(event, Word)]


def time_of(frame: int, delay: int = 6) -> float:
    return (frame + 1 - delay) / 12.5


def without_spaces(texts: Sequence[str]) -> str:
    return "".join("".join(texts).split())


# ---------------------------------------------------------------------------------------------------------- vocabulary


def test_vocabulary() -> None:
    vocabulary = Vocabulary(PIECES)
    assert len(vocabulary) == len(PIECES)
    assert vocabulary[HELLO] == b" hello"
    assert vocabulary[C3] == b"\xc3"
    assert vocabulary[ETE] == " été".encode()
    assert [vocabulary[token] for token in (0, 1, 2, 3, -1, len(PIECES))] == [b""] * 6


def test_a_character_spread_over_tokens_comes_out_whole() -> None:
    transcript = Transcript(info())
    tokens = [END, WOR, E2, X82, XAC, C3, A9, END]
    events = [transcript.add(result) for result in results(tokens)]
    texts = [[event.text for event in batch if isinstance(event, Token)] for batch in events]
    assert texts == [[], [" wor"], [], [], ["€"], [], ["é"], []]
    assert words_of(events[-1])[0].text == "wor€é"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([END, WOR, A9, LD, END], "wor�ld"),
        ([END, WOR, E2, LD, END], "wor�ld"),
        ([END, WOR, E2, X82, PAD, END], "wor�"),
        ([END, E2, END], "�"),
    ],
)
def test_invalid_bytes_read_as_the_replacement_character(tokens: list[int], text: str) -> None:
    events = run(Transcript(info()), tokens)
    assert [word.text for word in words_of(events)] == [text]
    assert without_spaces([event.text for event in events if isinstance(event, Token)]) == text


def test_half_a_character_stays_with_the_word_before_a_split() -> None:
    assert [word.text for word in words_of(run(Transcript(info()), [END, WOR, E2, HELLO, END]))] == ["wor�", "hello"]


# --------------------------------------------------------------------------------------------------------------- words


def test_one_word_event_by_event() -> None:
    transcript = Transcript(info())
    tokens = [PAD] * 9 + [END, PAD, WOR, LD, PAD, PAD, END]
    events = {i: got for i, result in enumerate(results(tokens)) if (got := transcript.add(result))}
    start = time_of(9)
    assert events == {
        11: [Token(" wor", 11)],
        12: [Token("ld", 12)],
        13: [WordStart("world", start)],
        15: [Word("world", start, time_of(15))],
    }
    assert transcript.finish(100.0) == []


def test_a_boundary_may_end_one_word_and_start_the_next() -> None:
    tokens = [PAD] * 9 + [END, HELLO, END, WOR, LD, END]
    assert words_of(run(Transcript(info()), tokens)) == [
        Word("hello", time_of(9), time_of(11)),
        Word("world", time_of(11), time_of(14)),
    ]


def read_words(tokens: Sequence[int], delay: int) -> list[tuple[str, float, float]]:
    """Upstream's rule, read off moshi-core's asr.rs, for sequences where every word gets its boundaries."""
    words: list[list] = []
    pieces: list[int] = []
    last, is_open = 0.0, False
    for i, token in enumerate(tokens):
        if token in (END, PAD):
            if pieces:
                text = b"".join(Vocabulary(PIECES)[piece] for piece in pieces).decode().strip()
                words.append([text, last, None])
                pieces, is_open = [], True
        else:
            pieces.append(token)
        if token == END:
            time = max(0.0, (i + 1 - delay) / 12.5)
            if is_open:
                words[-1][2] = time
                is_open = False
            last = time
    return [(text, start, end) for text, start, end in words]


@st.composite
def well_formed(draw: st.DrawFn) -> list[int]:
    tokens: list[int] = []
    for _ in range(draw(st.integers(0, 8))):
        if not tokens or draw(st.booleans()):
            tokens += [PAD] * draw(st.integers(0, 40)) + [END]
        tokens += [PAD] * draw(st.integers(0, 5))
        tokens += draw(st.sampled_from([[HELLO], [WOR, LD], [ETE], [WOR, C3, A9], [HELLO, COMMA], [SPACE, LD]]))
        tokens += [PAD] * draw(st.integers(0, MAX_END_WAIT_FRAMES - 1)) + [END]
    return tokens + [PAD] * draw(st.integers(0, 20))


@given(well_formed(), DELAYS)
def test_well_formed_sequences_read_as_upstream_reads_them(tokens: list[int], delay: int) -> None:
    words = words_of(run(Transcript(info(delay)), tokens))
    assert [(word.text, word.start_s, word.end_s) for word in words] == read_words(tokens, delay)


def test_two_words_without_a_boundary_are_split() -> None:
    tokens = [PAD] * 9 + [END, HELLO, WOR, LD, PAD, END]
    assert words_of(run(Transcript(info()), tokens)) == [
        Word("hello", time_of(9), time_of(11)),
        Word("world", time_of(11), time_of(14)),
    ]


def test_two_words_with_only_padding_between() -> None:
    tokens = [PAD] * 9 + [END, HELLO, PAD, PAD, WOR, LD, END]
    assert words_of(run(Transcript(info()), tokens)) == [
        Word("hello", time_of(9), time_of(13)),
        Word("world", time_of(13), time_of(15)),
    ]


def test_a_word_without_its_boundary_waits_a_second() -> None:
    transcript = Transcript(info())
    tokens = [PAD] * 9 + [END, HELLO] + [PAD] * 20
    batches = [words_of(transcript.add(result)) for result in results(tokens)]
    assert [(i, words) for i, words in enumerate(batches) if words] == [
        (11 + MAX_END_WAIT_FRAMES, [Word("hello", time_of(9), time_of(9) + 1)])
    ]


def test_a_late_boundary_starts_the_next_word() -> None:
    tokens = [PAD] * 9 + [END, HELLO] + [PAD] * 20 + [END, WOR, LD, END]
    assert words_of(run(Transcript(info()), tokens))[1] == Word("world", time_of(31), time_of(34))


@pytest.mark.parametrize(("end_s", "expected"), [(0.9, 0.9), (5.0, 1.32), (0.1, 0.32)])
def test_the_last_word_ends_with_the_audio_or_after_a_second(end_s: float, expected: float) -> None:
    for tail in ([], [PAD], [PAD] * 5):
        (word,) = words_of(run(Transcript(info()), [PAD] * 9 + [END, WOR, LD, *tail], end_s=end_s))
        assert (word.text, word.start_s, word.end_s) == ("world", pytest.approx(0.32), pytest.approx(expected))


def test_a_stream_goes_on_after_a_flush() -> None:
    transcript = Transcript(info())
    stream = results([PAD] * 9 + [END, HELLO] + [PAD] * 9 + [END, WOR, LD, END])
    first = [event for result in stream[:13] for event in transcript.add(result)] + transcript.finish(0.5)
    assert words_of(first) == [Word("hello", time_of(9), 0.5)]
    assert transcript.finish(0.5) == []
    rest = [event for result in stream[13:] for event in transcript.add(result)]
    assert words_of(rest) == [Word("world", time_of(20), time_of(23))]


def test_times_are_the_clients() -> None:
    tokens = [PAD] * 9 + [END, HELLO, END] + [PAD] * 30 + [END, HELLO, END]

    def without_silence(seconds: float) -> float:
        return min(seconds, max(0.5, seconds - 2.0))

    words = words_of(run(Transcript(info(), to_client_seconds=without_silence), tokens))
    assert [(word.start_s, word.end_s) for word in words] == [
        (time_of(9), time_of(11)),
        (time_of(42) - 2.0, time_of(44) - 2.0),
    ]


def test_a_model_that_repeats_itself_stays_bounded() -> None:
    words = words_of(run(Transcript(info()), [END, HELLO] + [COMMA] * 1000))
    assert sum(len(word.text) for word in words) == len("hello") + 1000
    assert max(len(word.text) for word in words) <= MAX_WORD_CHARACTERS


# ---------------------------------------------------------------------------------------------------------- any tokens


@given(TOKENS, DELAYS, st.floats(0, 12), st.sampled_from([float, lambda s: min(s, 1.0), lambda s: s / 3 - 0.5]))
def test_any_tokens_give_monotonic_words_and_lose_nothing(
    tokens: list[int], delay: int, end_s: float, mapping: Callable[[float], float]
) -> None:
    events = run(Transcript(info(delay), to_client_seconds=mapping), tokens, end_s=end_s)
    words = words_of(events)
    times = [time for word in words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert all(time >= 0 for time in times)
    assert all(word.text and word.text == word.text.strip() for word in words)
    spoken = [event.text for event in events if isinstance(event, Token)]
    assert without_spaces([word.text for word in words]) == without_spaces(spoken)
    # No piece is lost, whatever happens to invalid bytes between: the ASCII characters are those of the pieces.
    pieces = b"".join(Vocabulary(PIECES)[token] for token in tokens)
    ascii_pieces = bytes(byte for byte in pieces if byte < 128).decode()
    ascii_tokens = "".join(spoken).encode("ascii", "ignore").decode()
    assert without_spaces([ascii_tokens]) == without_spaces([ascii_pieces])


@given(TOKENS)
def test_every_word_is_announced_once_with_the_same_text_and_start(tokens: list[int]) -> None:
    announced: list[WordStart] = []
    for event in run(Transcript(info()), tokens):
        match event:
            case WordStart():
                assert not announced
                announced.append(event)
            case Word(text, start_s, _):
                assert announced.pop() == WordStart(text, start_s)
            case Token() | TurnEnd():
                pass
    assert not announced


@given(TOKENS)
def test_no_word_waits_longer_than_a_second(tokens: list[int]) -> None:
    transcript = Transcript(info())
    announced_at: int | None = None
    for result in results(tokens):
        for event in transcript.add(result):
            if isinstance(event, WordStart):
                announced_at = result.frame
            elif isinstance(event, Word):
                announced_at = None
        assert announced_at is None or result.frame - announced_at < MAX_END_WAIT_FRAMES


@given(TOKENS, st.data())
def test_the_same_results_give_the_same_events(tokens: list[int], data: st.DataObject) -> None:
    pauses = data.draw(st.lists(st.floats(0, 1), min_size=len(tokens), max_size=len(tokens)))
    assert run(Transcript(info()), tokens, pauses) == run(Transcript(info()), tokens, pauses)


@given(
    TOKENS, DELAYS, st.floats(0, 1), st.sampled_from([float, lambda s: min(s, 1.0), lambda s: max(0.0, s / 3 - 0.5)])
)
def test_no_word_ends_before_what_was_settled(
    tokens: list[int], delay: int, pause: float, mapping: Callable[[float], float]
) -> None:
    transcript = Transcript(info(delay), to_client_seconds=mapping)
    settled_s = [transcript.settled_s]
    ends: list[tuple[float, float]] = []
    for result in results(tokens, [pause] * len(tokens)):
        ends += [(settled_s[-1], word.end_s) for word in words_of(transcript.add(result))]
        settled_s.append(transcript.settled_s)
    ends += [(settled_s[-1], word.end_s) for word in words_of(transcript.finish(1e9))]
    assert settled_s == sorted(settled_s)
    assert all(settled <= end for settled, end in ends)


def test_what_is_settled_lags_by_the_delay_and_waits_for_a_word() -> None:
    transcript = Transcript(info())
    settled_s = []
    for result in results([PAD] * 9 + [END, HELLO, WOR, PAD, END, PAD]):
        transcript.add(result)
        settled_s.append(transcript.settled_s)
    assert settled_s[:6] == [0.0] * 6
    assert settled_s[6:] == [time_of(f) for f in (6, 7, 8, 9, 10, 11, 12, 13, 14)]
    for result in results([END, HELLO, COMMA, COMMA]):
        transcript.add(result._replace(frame=result.frame + 15))
    assert transcript.settled_s == time_of(18)


def test_a_words_confidence_is_the_mean_of_its_pieces() -> None:
    transcript = Transcript(info())
    said = [(END, 1.0), (WOR, 0.5), (LD, 0.75), (COMMA, 1.0), (PAD, 0.1), (END, 0.2), (HELLO, 0.9), (END, 1.0)]
    events = [
        event
        for frame, (token, probability) in enumerate(said)
        for event in transcript.add(FrameResult(frame, token, (), NO_CODES, 0.0, probability))
    ]
    assert [(word.text, word.confidence) for word in words_of(events)] == [("world,", 0.75), ("hello", 0.9)]


# ----------------------------------------------------------------------------------------------------------- turn ends

SENTENCE = [PAD] * 15 + [END, HELLO, END] + [PAD] * 12


def turn_ends(tokens: Sequence[int], pauses: Sequence[float], **options: float) -> list[float]:
    transcript = Transcript(info(), **options)  # type: ignore[arg-type]
    return [event.time_s for event in run(transcript, tokens, pauses) if isinstance(event, TurnEnd)]


def test_a_turn_ends_once_and_only_after_a_word() -> None:
    silence, speech, pause = [1.0] * 14, [0.1] * 8, [0.9] * 8
    assert turn_ends(SENTENCE, silence + speech + pause) == [time_of(22)]
    assert turn_ends(SENTENCE * 2, (silence + speech + pause) * 2) == [time_of(22), time_of(52)]
    assert turn_ends([PAD] * 30, silence + speech + pause) == []


def test_the_first_frames_end_no_turn() -> None:
    assert turn_ends([HELLO, END] + [PAD] * 12, [0.9] * 14) == [time_of(12)]


def test_a_turn_does_not_end_in_the_middle_of_a_word() -> None:
    assert turn_ends([PAD] * 15 + [WOR, LD, COMMA, PAD, PAD], [0.9] * 20) == [time_of(18)]


def test_the_word_comes_before_the_end_of_its_turn() -> None:
    tokens = [PAD] * 15 + [END, HELLO] + [PAD] * 3 + [END]
    events = run(Transcript(info()), tokens, [0.1] * 18 + [0.9] * 3)
    assert events == [
        Token(" hello", 16),
        WordStart("hello", time_of(15)),
        Word("hello", time_of(15), time_of(18)),
        TurnEnd(time_of(18)),
    ]


def test_head_and_threshold_are_the_callers() -> None:
    pauses = [0.1] * 22 + [0.7] * 8
    assert turn_ends(SENTENCE, pauses, pause_threshold=0.69) == [time_of(22)]
    assert turn_ends(SENTENCE, pauses, pause_threshold=0.7) == []
    assert turn_ends(SENTENCE, pauses, pause_head=1, pause_threshold=0.8) == [time_of(17)]


def test_without_pause_heads_no_turn_ends() -> None:
    tokens = SENTENCE * 3
    assert turn_ends(tokens, []) == []
    heads = [FrameResult(i, token, (0.9, 0.9), NO_CODES) for i, token in enumerate(tokens)]
    transcript = Transcript(info(pause_heads=2))
    assert not any(isinstance(event, TurnEnd) for result in heads for event in transcript.add(result))


@given(TOKENS, st.data())
def test_between_two_turn_ends_there_is_a_word(tokens: list[int], data: st.DataObject) -> None:
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.9]), min_size=len(tokens), max_size=len(tokens)))
    heard = False
    for event in run(Transcript(info()), tokens, pauses):
        if isinstance(event, TurnEnd):
            assert heard
            heard = False
        elif isinstance(event, Word):
            heard = True
