"""From the order in which chunks come to the order in which they were spoken."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bridges.audio import Sound
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.order import Order, Piece, SessionEnds, Spoken, SpokenBefore, Step, TooLate
from serve_app.bridges.settings import KafkaSettings
from tests.kafka_support import BEGINNING

SETTINGS = KafkaSettings(bootstrap_servers="x", session_gap_seconds=5.0, reorder_chunks=3, reorder_seconds=2.0)
SOUND = Sound(np.zeros(8_000, np.float32), 8_000)


def piece(number: int | None, second: float | None = None, offset: int = 0, arrived_at: float = 0.0) -> Piece:
    """A second of audio, the `number`th of its device."""
    chunk = AudioChunk(
        device_id="d",
        recorded_at=BEGINNING + timedelta(seconds=(number or 0) if second is None else second),
        audio_data=b"",
        chunk_id=f"c{number}",
        sequence_number=number,
    )
    return Piece(chunk, offset, SOUND, answered=False, arrived_at=arrived_at)


def told(steps) -> list[str]:
    """`b3`: a session begins with 3; `3`: it goes on; `before0`; `end`; `late1`."""
    return [_told(step) for step in steps]


def _told(step: Step) -> str:
    match step:
        case Spoken(piece, begins):
            return ("b" if begins else "") + str(piece.chunk.sequence_number)
        case SpokenBefore(piece):
            return f"before{piece.chunk.sequence_number}"
        case SessionEnds():
            return "end"
        case TooLate(piece):
            return f"late{piece.chunk.sequence_number}"


def run(*numbers: int, settings: KafkaSettings = SETTINGS) -> list[str]:
    order = Order(settings)
    return [text for number in numbers for text in told(order.take(piece(number), 0.0))]


def test_chunks_in_order_are_one_session():
    assert run(1, 2, 3) == ["b1", "2", "3"]
    assert run(0, 1, 2) == ["b0", "1", "2"]


def test_a_device_that_is_first_heard_of_in_the_middle_may_have_sent_more_before():
    assert run(8, 1, 3, 2) == ["b1", "2", "3"]
    order = Order(SETTINGS)
    assert told(order.take(piece(8), 0.0)) == []
    assert told(order.take(piece(7), 1.0)) == []
    assert told(order.tick(2.0, 0.0)) == ["b7", "8"]
    assert told(order.take(piece(9), 2.0)) == ["9"]


def test_a_device_that_counts_from_0_may_be_heard_of_with_1_first():
    assert run(1, 0, 2, 0) == ["b1", "before0", "2", "late0"]
    assert run(1, 2, 0, 3) == ["b1", "2", "before0", "3"]
    assert run(1, -1, 0) == ["b1", "late-1", "before0"]
    assert run(1, 0, settings=SETTINGS.model_copy(update={"reorder_seconds": 0.0})) == ["b1", "late0"]


@pytest.mark.parametrize(("arrived_at", "second"), [(2.0, 0.0), (0.0, -5.1), (0.0, 1.0)])
def test_a_chunk_0_that_comes_after_the_window_or_was_recorded_at_another_time_is_late(arrived_at, second):
    order = Order(SETTINGS)
    list(order.take(piece(1), 0.0))
    assert told(order.take(piece(0, second, arrived_at=arrived_at), arrived_at)) == ["late0"]


def test_what_was_answered_before_a_crash_is_the_beginning():
    order = Order(SETTINGS)
    assert told(order.take(replace(piece(7), answered=True), 0.0)) == ["b7"]
    assert told(order.take(piece(8), 0.0)) == ["8"]


def test_what_is_out_of_order_is_put_right():
    assert run(1, 3, 4, 2, 6, 5) == ["b1", "2", "3", "4", "5", "6"]


def test_a_missing_chunk_is_not_waited_for_longer_than_the_window():
    assert run(1, 3, 4, 5, 6) == ["b1", "end", "b3", "4", "5", "6"]
    order = Order(SETTINGS)
    assert told(order.take(piece(1), 0.0)) == ["b1"]
    assert told(order.take(piece(3), 0.5)) == []
    assert told(order.tick(2.4, 0.0)) == []
    assert told(order.tick(2.5, 0.0)) == ["end", "b3"]
    assert told(order.take(piece(2), 3.0)) == ["late2"]
    assert told(order.take(piece(4), 3.0)) == ["4"]


def test_without_a_window_nothing_waits():
    assert run(1, 3, 2, settings=SETTINGS.model_copy(update={"reorder_chunks": 0})) == ["b1", "end", "b3", "late2"]


def test_a_gap_in_time_ends_a_session():
    order = Order(SETTINGS)
    assert told(order.take(piece(1, 0.0), 0.0)) == ["b1"]
    assert told(order.take(piece(2, 5.9), 0.0)) == ["2"]
    assert told(order.take(piece(3, 12.0), 0.0)) == ["end", "b3"]


def test_a_clock_that_jumps_back_ends_a_session_and_nothing_else():
    order = Order(SETTINGS)
    assert told(order.take(piece(1, 0.0), 0.0)) == ["b1"]
    assert told(order.take(piece(2, -1e6), 0.0)) == ["end", "b2"]
    assert told(order.take(piece(3, -1e6 + 1), 0.0)) == ["3"]


def test_silence_ends_a_session_when_the_next_chunk_is_overdue():
    order = Order(SETTINGS)
    assert told(order.take(piece(1), 0.0)) == ["b1"]
    assert told(order.tick(5.9, 0.0)) == []
    assert told(order.tick(6.5, 1.0)) == []  # nobody listened during the first second
    assert told(order.tick(7.0, 1.0)) == ["end"]
    assert told(order.tick(99.0, 0.0)) == []
    assert order.is_idle
    assert told(order.take(piece(2), 100.0)) == ["b2"]


def test_a_device_that_counts_anew_is_not_late():
    order = Order(SETTINGS)
    list(order.take(piece(50, 0.0), 0.0))
    assert told(order.tick(2.0, 0.0)) == ["b50"]
    assert told(order.take(piece(1, 1.0), 0.0)) == ["end", "b1"]
    assert told(order.take(piece(2, 2.0), 0.0)) == ["2"]


def test_a_device_that_counts_anew_with_its_clock_set_back_is_not_late():
    order = Order(SETTINGS)
    for number in range(1, 7):
        list(order.take(piece(number), 0.0))
    assert told(order.take(piece(1, -1e6), 0.0)) == ["end", "b1"]
    assert told(order.take(piece(2, -1e6 + 1), 0.0)) == ["2"]


def test_late_chunks_that_count_up_are_a_device_that_counts_anew():
    order = Order(SETTINGS)
    for number in (1, 2, 3):
        list(order.take(piece(number), 0.0))
    steps = [text for number in (1, 2, 3, 4) for text in told(order.take(piece(number, -1e6 + number), 0.0))]
    assert steps == ["late1", "late2", "end", "b3", "4"]


def test_late_chunks_among_others_stay_late():
    order = Order(SETTINGS)
    for number in (1, 5):
        list(order.take(piece(number), 0.0))
    list(order.tick(2.0, 0.0))
    steps = [text for number in (2, 6, 3, 7, 4, 8) for text in told(order.take(piece(number), 2.0))]
    assert steps == ["late2", "6", "late3", "7", "late4", "8"]


def test_late_chunks_do_not_keep_a_session_open():
    order = Order(SETTINGS)
    for number in (1, 2, 3):
        list(order.take(piece(number), 0.0))
    assert told(order.take(piece(2, 2.0), 5.0)) == ["late2"]
    assert told(order.tick(6.0, 0.0)) == ["end"]


def test_nothing_counts_as_lost_while_nobody_reads():
    order = Order(SETTINGS)
    list(order.take(piece(1), 0.0))
    list(order.take(piece(3), 0.0))
    assert told(order.tick(10.0, 10.0)) == []
    assert told(order.tick(11.9, 10.0)) == []
    assert told(order.take(piece(2), 11.9)) == ["2", "3"]


def test_no_chunk_waits_longer_than_the_window_however_many_are_missing():
    order = Order(SETTINGS)
    for number, second in ((1, 0.0), (3, 0.0), (5, 0.5)):
        list(order.take(piece(number), second))
    assert told(order.tick(2.0, 0.0)) == ["end", "b3"]
    assert told(order.tick(2.5, 0.0)) == ["end", "b5"]


def test_without_numbers_chunks_are_taken_as_they_come():
    order = Order(SETTINGS)
    steps = [text for second in (0, 1, 2, 60) for text in told(order.take(piece(None, second), 0.0))]
    assert steps == ["bNone", "None", "None", "end", "bNone"]


ARRIVALS = st.lists(
    st.tuples(st.none() | st.integers(0, 12), st.floats(-20, 20), st.floats(0, 4)), max_size=40
)  # number, second of the recording, time since the arrival before


@given(ARRIVALS)
def test_every_piece_comes_out_once_and_sessions_begin_and_end_in_turn(arrivals) -> None:
    order, now, came, open_ = Order(SETTINGS), 0.0, [], False
    steps: list[Step] = []
    for offset, (number, second, pause) in enumerate(arrivals):
        now += pause
        steps += order.tick(now, 0.0)
        steps += order.take(piece(number, second, offset), now)
    for _ in range(3):
        now += 30
        steps += order.tick(now, 0.0)
    for step in steps:
        match step:
            case Spoken(one, begins):
                assert begins != open_
                open_ = True
                came.append(one.offset)
            case SpokenBefore(one):
                assert open_
                came.append(one.offset)
            case SessionEnds():
                assert open_
                open_ = False
            case TooLate(one):
                came.append(one.offset)
    assert sorted(came) == list(range(len(arrivals)))
    assert order.is_idle
