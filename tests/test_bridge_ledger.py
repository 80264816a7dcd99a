"""Which messages are answered, across lives of the bridge."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.bridges.broker import MESSAGES_AT_ONCE
from serve_app.bridges.ledger import MOST_AHEAD, MOST_TOLD, SCHEME, Ledger


def test_the_position_is_before_the_first_message_without_an_answer():
    ledger = Ledger(10)
    assert [ledger.saw(offset) for offset in (8, 9, 10, 11, 13)] == [True, True, False, False, False]
    assert (ledger.pending, ledger.position, ledger.span) == (3, 10, 4)
    ledger.done(11)
    assert ledger.statement()[0] == 10
    ledger.done(10)
    assert ledger.statement() == (13, "")
    ledger.done(13)
    assert (ledger.pending, ledger.position, ledger.span) == (0, 14, 0)


@given(st.data())
def test_every_message_is_answered_once_however_often_the_owner_changes(data: st.DataObject) -> None:
    messages = sorted(data.draw(st.sets(st.integers(0, 60), max_size=40)))
    answered: list[int] = []
    position, text = 0, ""
    for _ in range(data.draw(st.integers(1, 6))):
        ledger = Ledger(position, text)
        history = data.draw(st.integers(0, 20))
        read = [offset for offset in messages if offset >= position - history]
        for offset in read[: data.draw(st.integers(0, len(read)))]:
            assert ledger.saw(offset) == (offset in answered)
            assert len(text) < 4_000
        for offset in data.draw(st.permutations(list(ledger._pending)))[: data.draw(st.integers(0, 40))]:
            ledger.done(offset)
            answered.append(offset)
        position, text = ledger.statement()
    assert len(answered) == len(set(answered))
    assert all(offset in answered for offset in messages if offset < position)


def test_the_longest_text_fits_into_what_brokers_take():
    ledger = Ledger()
    for offset in range(MOST_TOLD + 1):
        ledger.saw(offset)
    for offset in range(1, MOST_TOLD + 1):
        ledger.done(offset)
    position, text = ledger.statement()
    assert (position, len(text) < 4096) == (0, True)
    again = Ledger(position, text)
    assert [again.saw(offset) for offset in (0, 1, MOST_TOLD - 1, MOST_TOLD)] == [False, True, True, False]


def test_what_was_read_at_once_with_the_last_message_that_may_be_is_told():
    last = MOST_AHEAD + MESSAGES_AT_ONCE
    ledger = Ledger()
    for offset in range(last):
        ledger.saw(offset)
    for offset in range(1, last):
        ledger.done(offset)
    again = Ledger(*ledger.statement())
    assert [again.saw(offset) for offset in range(last)] == [False] + [True] * (last - 1)


@given(st.text() | st.text().map(lambda text: SCHEME + text))
def test_texts_of_others_mean_nothing(text: str) -> None:
    assert Ledger(5, text).saw(4)
    assert isinstance(Ledger(5, text).saw(5), bool)
