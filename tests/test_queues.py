import numpy as np
import pytest

from serve_app.engine.queues import CREDIT_FRAMES, FrameQueues
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS


def frames(*values: float) -> np.ndarray:
    return np.repeat(np.array(values, dtype=np.float32)[:, None], FRAME_SAMPLES, axis=1)


@pytest.fixture
def queues() -> FrameQueues:
    made = FrameQueues(slots=4, depth=3)
    for slot in range(4):
        made.clear(slot, now=0.0)
    return made


ALL = np.ones(4, dtype=bool)


def test_frames_of_a_slot_come_out_in_order_also_around_the_end_of_the_ring(queues):
    taken = []
    for value in range(0, 14, 2):
        assert queues.push(1, frames(value, value + 1), now=0.0)
        taken += [queues.take(np.array([1]))[0, 0] for _ in range(2)]
    assert taken == list(range(14))


def test_a_full_queue_takes_nothing(queues):
    assert queues.push(0, frames(1, 2), now=0.0)
    assert not queues.push(0, frames(3, 4), now=0.0)
    assert queues.push(0, frames(3), now=0.0)
    assert [queues.take(np.array([0]))[0, 0] for _ in range(3)] == [1, 2, 3]


def test_only_eligible_slots_with_frames_are_ready(queues):
    for slot in (0, 2, 3):
        queues.push(slot, frames(slot), now=0.0)
    live, backlog = queues.ready(np.array([True, True, True, False]), now=0.0)
    assert live.tolist() == [0, 2]
    assert backlog.tolist() == []


def test_a_stream_faster_than_the_clock_becomes_backlog_and_earns_credit_back(queues):
    for _ in range(int(CREDIT_FRAMES)):
        queues.push(0, frames(1), now=0.0)
        queues.take(np.array([0]))
    queues.push(0, frames(1), now=0.0)
    queues.push(1, frames(1), now=0.0)
    live, backlog = queues.ready(ALL, now=0.0)
    assert (live.tolist(), backlog.tolist()) == ([1], [0])
    live, backlog = queues.ready(ALL, now=FRAME_SECONDS * 1.01)
    assert (live.tolist(), backlog.tolist()) == ([0, 1], [])


def test_a_stream_in_real_time_is_never_backlog(queues):
    for index in range(200):
        now = index * FRAME_SECONDS
        queues.push(2, frames(index), now)
        live, _ = queues.ready(ALL, now)
        assert live.tolist() == [2]
        queues.take(live)


def test_backlog_is_served_in_turn(queues):
    for slot in range(3):
        for _ in range(int(CREDIT_FRAMES)):
            queues.push(slot, frames(1), now=0.0)
            queues.take(np.array([slot]))
        queues.push(slot, frames(1, 1, 1), now=0.0)
    served = []
    for _ in range(6):
        _, backlog = queues.ready(ALL, now=0.0)
        served.append(int(backlog[0]))
        queues.take(backlog[:1])
    assert served == [0, 1, 2, 0, 1, 2]


def test_a_cleared_slot_has_no_frames_and_full_credit(queues):
    queues.push(0, frames(7), now=0.0)
    queues.clear(0, now=5.0)
    assert queues.ready(ALL, now=5.0)[0].tolist() == []
    queues.push(0, frames(8), now=5.0)
    assert queues.take(np.array([0]))[0, 0] == 8
