"""Steps that one thread does quickly run on one, and torch's number of threads is as it was."""

import time

import pytest
import torch

from serve_app.model import step_threads
from serve_app.model.step_threads import StepThreads


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def quick() -> None:
    """A step that takes no time."""


def long() -> None:
    """A step that is not short."""
    ends_at = time.thread_time() + 1.5 * step_threads.SHORT_SECONDS
    while time.thread_time() < ends_at:
        pass


def threads_for(threads: StepThreads, rows: int) -> int:
    with threads.chosen(rows):
        return torch.get_num_threads()


def test_steps_as_wide_as_was_quick_run_on_one_thread():
    threads = StepThreads()
    assert threads_for(threads, 1) == 3
    assert threads.learn(1, quick)
    assert threads.learn(4, quick)
    assert not threads.learn(8, long)
    assert [threads_for(threads, rows) for rows in (1, 4, 5, 8)] == [1, 1, 3, 3]
    assert torch.get_num_threads() == 3


def test_where_every_step_is_long_all_threads_work():
    threads = StepThreads()
    assert not threads.learn(1, long)
    assert threads_for(threads, 1) == 3


def test_a_step_that_fails_leaves_the_threads_as_they_were():
    threads = StepThreads()
    threads.learn(1, quick)
    with pytest.raises(RuntimeError, match="broken"), threads.chosen(1):
        raise RuntimeError("broken")
    assert torch.get_num_threads() == 3
