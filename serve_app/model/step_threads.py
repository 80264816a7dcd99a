"""How many threads a step on a CPU runs on.

Threads that work on one short step mostly wait for one another, and on a small machine the other cores are wanted: by
the ingress, and by everything else. So a step that one thread does quickly is done by one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SHORT_SECONDS = 0.010
"""A step that takes one thread no longer than this is done by one: an eighth of the 80 ms of a frame."""


class StepThreads:
    """Learns how wide a step one thread does quickly. Torch's number of threads is everybody's: it is put back."""

    def __init__(self) -> None:
        """Wider steps run on as many threads as torch has when they run."""
        self._rows_alone = 0

    @contextmanager
    def chosen(self, rows: int) -> Iterator[None]:
        """Run a step of so many rows on as many threads as it is worth."""
        if rows > self._rows_alone:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def learn(self, rows: int, step: Callable[[], object]) -> bool:
        """Run a step of so many rows on one thread, and say whether that is quick; call it with ever wider steps.

        CPU time counts, the better of two: what else the machine does meanwhile says nothing about later.
        """
        known, self._rows_alone = self._rows_alone, rows
        if min(_seconds(step), _seconds(step)) > SHORT_SECONDS:
            self._rows_alone = known
        return self._rows_alone == rows


def _seconds(step: Callable[[], object]) -> float:
    started_at = time.thread_time()
    step()
    return time.thread_time() - started_at
