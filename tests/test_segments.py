"""Segments end where the speaker pauses, and before they are too long."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.segments import GAP_SECONDS, MAX_SECONDS, Segment, Segmenter
from serve_app.transcript import Event, Token, TurnEnd, Word


def segments_of(events: list[Event]) -> list[Segment]:
    segmenter = Segmenter()
    found = [segmenter.add(event) for event in events] + [segmenter.finish()]
    return [segment for segment in found if segment]


def test_turn_ends_and_long_gaps_end_a_segment():
    events = [
        Token(" a", 1), Word("a", 0.0, 0.4), Word("b", 0.5, 0.9), TurnEnd(1.2), TurnEnd(1.3),
        Word("c", 1.4, 1.6), Word("d", 1.6 + GAP_SECONDS, 2.9),
    ]  # fmt: skip
    assert [(each.text, each.start_s, each.end_s) for each in segments_of(events)] == [
        ("a b", 0.0, 0.9), ("c", 1.4, 1.6), ("d", 2.6, 2.9),
    ]  # fmt: skip


def test_one_who_never_pauses_gets_several_segments():
    words: list[Event] = [Word(str(n), n * 0.5, n * 0.5 + 0.5) for n in range(100)]
    segments = segments_of(words)
    assert len(segments) == 5
    assert all(segment.end_s - segment.start_s <= MAX_SECONDS for segment in segments)


@given(st.lists(st.one_of(st.just(TurnEnd(0.0)), st.tuples(st.floats(0, 5), st.floats(0, 30))), max_size=50))
def test_every_word_is_in_one_segment_and_in_order(drawn):
    events: list[Event] = []
    now = 0.0
    for each in drawn:
        if isinstance(each, TurnEnd):
            events.append(each)
        else:
            start = now + each[0]
            now = start + each[1]
            events.append(Word("w", start, now))
    segments = segments_of(events)
    assert [word for segment in segments for word in segment.words] == [e for e in events if isinstance(e, Word)]
