"""One session of a device: words and pieces, whatever happens to the streams between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bridges.audio import Sound
from serve_app.bridges.device import Answer, DeviceSession
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.order import Piece
from tests.kafka_support import BEGINNING


def piece(number: int, seconds: float = 1.0, rate_hz: int = 8_000, answered: bool = False) -> Piece:
    chunk = AudioChunk(device_id="d", recorded_at=BEGINNING, audio_data=b"", chunk_id=f"c{number}")
    tone = np.sin(np.arange(round(seconds * rate_hz)) * (400 / rate_hz)).astype(np.float32)
    return Piece(chunk, number, Sound(tone, rate_hz), answered, arrived_at=0.0)


def send_all(session: DeviceSession) -> int:
    """Samples sent."""
    samples = 0
    while (audio := session.next_audio()) is not None:
        samples += len(audio)
    return samples


def told(answers) -> list[tuple[int, list[str]]]:
    return [(answer.piece.offset, [word.text for word in answer.words]) for answer in answers]


def test_a_piece_is_answered_with_the_words_that_end_in_it_once_no_more_can():
    session = DeviceSession(30)
    for number in range(3):
        session.add(piece(number))
    send_all(session)
    session.hear("one", 0.2, 0.5, 0.9)
    assert told(session.settle(0.9)) == []
    session.hear("two", 0.8, 1.2, 0.8)
    [answer] = session.settle(1.05)
    assert answer == Answer(answer.piece, answer.words)
    assert told([answer]) == [(0, ["one"])]
    assert told(session.settle(1.2)) == []
    session.hear("three", 1.9, 2.0, 0.7)
    [answer] = session.settle(2.5)
    assert [(word.text, word.confidence) for word in answer.words] == [("two", 0.8), ("three", 0.7)]
    assert [(word.start_s, word.end_s) for word in answer.words] == [
        (pytest.approx(-0.2), pytest.approx(0.2)),
        (pytest.approx(0.9), pytest.approx(1.0)),
    ]
    session.hear("four", 2.9, 3.0, 0.7)
    assert told(session.finish()) == [(2, ["four"])]
    assert not session.is_waiting


def test_a_stream_that_begins_again_hears_the_history_and_answers_nothing_twice():
    session = DeviceSession(history_seconds=2)
    for number in range(6):
        session.add(piece(number))
    send_all(session)
    assert len(told(session.settle(4.5))) == 4
    session.restart()
    assert send_all(session) == pytest.approx(4 * 24_000, rel=0.02)  # two seconds of history, two pieces to answer
    session.hear("known", 1.5, 1.9, 0.9)
    session.hear("new", 1.8, 2.3, 0.9)
    session.end()
    assert len(session.last_audio()) < 24_000
    assert told(session.finish()) == [(4, ["new"]), (5, [])]
    assert session.is_over


def test_pieces_of_one_rate_are_resampled_without_a_seam():
    whole, cut = DeviceSession(30), DeviceSession(30)
    sound = piece(0, 3.0, 16_000).sound
    whole.add(piece(0, 3.0, 16_000))
    for number in range(3):
        part = Sound(sound.samples[number * 16_000 : (number + 1) * 16_000], 16_000)
        cut.add(Piece(piece(number).chunk, number, part, False, 0.0))
    heard = []
    for session in (whole, cut):
        session.end()
        parts = []
        while (audio := session.next_audio()) is not None:
            parts.append(audio)
        heard.append(np.concatenate([*parts, session.last_audio()]))
    np.testing.assert_array_equal(*heard)
    assert len(heard[0]) == 72_000


def test_a_rate_may_change():
    session = DeviceSession(30)
    session.add(piece(0, 1.0, 8_000))
    session.add(piece(1, 1.0, 48_000))
    session.add(piece(2, 1.0, 24_000))
    session.end()
    assert send_all(session) + len(session.last_audio()) == pytest.approx(72_000, abs=3)


def test_a_piece_that_nobody_can_hear_is_taken_out():
    session = DeviceSession(30)
    for number in range(2):
        session.add(piece(number))
    send_all(session)
    assert session.refuse().offset == 0
    send_all(session)
    assert told(session.finish()) == [(1, [])]
    assert session.refuse() is None


def test_a_piece_can_be_heard_alone():
    session = DeviceSession(30)
    for number in range(3):
        session.add(piece(number, answered=number == 0))
    session.restart(alone=True)
    session.add(piece(3))
    assert send_all(session) + len(session.last_audio()) == pytest.approx(24_000, abs=3)
    assert session.is_behind
    session.hear("one", 0.2, 0.5, 0.9)
    assert told(session.finish()) == [(1, ["one"])]
    session.restart()
    assert session.last_audio() is None
    assert send_all(session) == pytest.approx(4 * 24_000, rel=0.02)
    assert told(session.finish()) == [(2, []), (3, [])]


class Service:
    """Hears the same words in every stream, wherever it begins."""

    def __init__(self, session: DeviceSession, begins_s: float, ends_s: list[float]) -> None:
        self._session, self._begins_s, self._settled_s = session, begins_s, 0.0
        self._ends_s = [end_s - begins_s for end_s in ends_s]

    def hear(self, share: float) -> list[Answer]:
        """Hear a share of what was sent and not heard yet."""
        self._tell(self._settled_s + share * max(0.0, self._session._sent_s - self._settled_s))
        return list(self._session.settle(self._settled_s))

    def finish(self) -> list[Answer]:
        self._tell(self._session._sent_s)
        return list(self._session.finish())

    def _tell(self, until_s: float) -> None:
        for end_s in self._ends_s:
            if self._settled_s + 1e-9 < end_s <= until_s + 1e-9:
                self._session.hear(f"{end_s + self._begins_s:.2f}", end_s - 0.1, end_s, 1.0)
        self._settled_s = until_s


STEPS = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=8)
STREAMS = st.lists(st.tuples(st.booleans(), STEPS), max_size=4)
"""Streams that break off, or hear one piece alone: steps in which a piece comes, or not, and a share of what was sent
is heard."""


@given(
    seconds=st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.5]), min_size=1, max_size=9),
    ends=st.lists(st.integers(1, 1350), max_size=12, unique=True),
    history=st.sampled_from([0.0, 1.0, 3.0]),
    streams=STREAMS,
)
def test_every_piece_is_answered_once_in_order_and_every_word_is_where_it_ends(
    seconds: list[float], ends: list[int], history: float, streams: list[tuple[bool, list[tuple[bool, float]]]]
) -> None:
    bounds = np.cumsum([0.0, *seconds])
    # Not where two pieces meet: the service rounds its times.
    ends_s = [end / 100 for end in sorted(ends) if min(abs(bounds - end / 100)) > 0.005 and end / 100 < bounds[-1]]
    session, answers, to_come = DeviceSession(history), [], [piece(n, length) for n, length in enumerate(seconds)]
    for alone, steps in [*streams, (False, [])]:
        session.restart(alone=alone)
        first = session._to_send[0].piece.offset if session._to_send else len(seconds) - len(to_come)
        service = Service(session, float(bounds[first]), ends_s)
        for comes, share in steps:
            if comes and to_come:
                session.add(to_come.pop(0))
            send_all(session)
            answers += service.hear(share)
        if session.last_audio() is not None:
            answers += service.finish()
    for last in to_come:
        session.add(last)
    session.end()
    send_all(session)
    assert session.last_audio() is not None
    answers += service.finish()
    assert session.is_over
    assert [answer.piece.offset for answer in answers] == list(range(len(seconds)))
    for answer in answers:
        low, high = bounds[answer.piece.offset], bounds[answer.piece.offset + 1]
        assert [word.text for word in answer.words] == [f"{end_s:.2f}" for end_s in ends_s if low < end_s < high]
