"""Small products run on one thread, and torch's number of threads stays as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.model.step_threads import StepThreads
from serve_app.speech import FRAME_SAMPLES, History


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_for(threads: StepThreads, rows: int) -> int:
    with threads.chosen(rows):
        return torch.get_num_threads()


def test_a_small_model_runs_on_one_thread_until_its_steps_are_wide():
    threads = StepThreads(nn.Sequential(nn.Linear(128, 704), nn.Linear(352, 128)))
    assert [threads_for(threads, rows) for rows in (1, 32, 128, 4096)] == [1, 1, 1, 3]
    assert torch.get_num_threads() == 3


def test_a_large_model_runs_on_all_of_them():
    with torch.device("meta"):
        threads = StepThreads(nn.Linear(2048, 11264, dtype=torch.bfloat16))
    assert [threads_for(threads, rows) for rows in (1, 8)] == [3, 3]


def test_a_step_that_fails_leaves_the_threads_as_they_were():
    threads = StepThreads(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="broken"), threads.chosen(1):
        raise RuntimeError("broken")
    assert torch.get_num_threads() == 3


def test_a_prefill_of_a_small_model_runs_on_one_thread(demo_model, monkeypatch):
    used: list[int] = []
    for part, method in ((demo_model._codec, "advance"), (demo_model._decoder, "_extend")):
        real = getattr(part, method)

        def watched(*arguments, real=real):
            used.append(torch.get_num_threads())
            return real(*arguments)

        monkeypatch.setattr(part, method, watched)
    codes = np.zeros((200, demo_model.info.codebooks), np.int16)
    audio = np.zeros((2, FRAME_SAMPLES), np.float32)
    history = History(next_frame=300, tokens=np.zeros(200, np.int32), codes=codes, audio=audio)
    for _ in demo_model.prefill([0], [history]):
        assert torch.get_num_threads() == 3
    assert used == [1, 1, 1, 1]
    demo_model.reset(np.zeros(1, np.int64))
