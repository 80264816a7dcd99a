"""Steps run on one thread where more do not pay, and torch's number of threads stays as it was."""

import time

import pytest
import torch

from serve_app.model.step_threads import TRIES, StepThreads


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def work(seconds: float) -> None:
    """Take CPU time."""
    ends_at = time.process_time() + seconds
    while time.process_time() < ends_at:
        pass


def step(threads: StepThreads, rows: int, alone_s: float = 0.0, together_s: float = 0.0) -> int:
    """Run a step that takes so much CPU time; the threads that it ran on."""
    with threads.chosen(rows):
        number = torch.get_num_threads()
        work(alone_s if number == 1 else together_s)
    return number


def test_both_are_tried_and_threads_that_only_wait_for_one_another_are_left_out():
    threads = StepThreads()
    tried = [step(threads, 4, 0.01, 0.03) for _ in range(2 * TRIES)]
    assert sorted(tried) == [1] * TRIES + [3] * TRIES
    assert threads.knows(7)
    assert not threads.knows(8)
    assert [step(threads, rows) for rows in (4, 5, 7)] == [1, 1, 1]


def test_threads_that_share_the_work_get_it_and_all_wider_steps():
    threads = StepThreads()
    while not threads.knows(1):
        step(threads, 1, 0.005, 0.03)
    while not threads.knows(8):
        step(threads, 8, 0.03, 0.03)
    assert [step(threads, rows) for rows in (1, 8, 9, 1000)] == [1, 3, 3, 3]


def test_one_thread_has_nothing_to_choose():
    torch.set_num_threads(1)
    assert StepThreads().knows(5)


def test_a_step_that_fails_teaches_nothing_and_leaves_the_threads_as_they_were():
    threads = StepThreads()
    for _ in range(2 * TRIES):
        with pytest.raises(RuntimeError, match="broken"), threads.chosen(1):
            raise RuntimeError("broken")
    assert not threads.knows(1)
    assert torch.get_num_threads() == 3
