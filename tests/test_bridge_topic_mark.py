"""Which topic a committed position belongs to."""

from confluent_kafka import Uuid
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bridges.ledger import MOST_TOLD, SCHEME
from serve_app.bridges.topic_mark import MARK_BYTES, mark, unmark

BITS = st.integers(-(2**63), 2**63 - 1)


@given(BITS, BITS, st.text())
def test_the_text_and_the_topics_id_come_back(high: int, low: int, text: str) -> None:
    topic_id = str(Uuid(high, low))
    marked = mark(topic_id, text)
    assert unmark(marked) == (topic_id, text)
    assert len(marked) - len(text) == MARK_BYTES


@given(st.text().filter(lambda text: not text.startswith("topic:")))
def test_a_text_without_a_mark_is_of_any_topic(text: str) -> None:
    assert unmark(text) == ("", text)
    assert mark("", text) == text


@given(st.text())
def test_any_text_is_understood(text: str) -> None:
    unmark("topic:" + text)


def test_the_longest_text_fits_into_what_brokers_take() -> None:
    assert MARK_BYTES + len(SCHEME) + 4 * -(-MOST_TOLD // 8 // 3) <= 4096
