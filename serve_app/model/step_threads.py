"""How many threads a step on a CPU runs on: one, or all where that pays.

A step is hundreds of operations, and threads wait for one another after each. With a large model that is nothing; with
a small one two threads that sleep while they wait take twice as long as one alone (and threads that do not sleep take
the cores from the ingress). So both are tried, and the CPU time tells: where threads share the work, and do not just
wait, all of them together take hardly more of it than one.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MOST_TOTAL = 1.25
"""Times the CPU time of one thread that all threads together may take: then they pay."""

TRIES = 2
"""Steps with one thread, and as many with all, before it is known; the quickest counts."""


class StepThreads:
    """Learns from the steps that are run. Torch's number of threads is everybody's: it is put back after each."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._tried: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        self._alone: set[int] = set()  # kinds of steps
        self._together_from: float = float("inf")  # kind of step: larger ones are shared even better

    def knows(self, rows: int) -> bool:
        """Whether it is known what is best for a step of so many rows."""
        kind = _kind(rows)
        return torch.get_num_threads() == 1 or kind in self._alone or kind >= self._together_from

    @contextmanager
    def chosen(self, rows: int) -> Iterator[None]:
        """Run a step of so many rows on as many threads as are best, or have to be tried."""
        if self.knows(rows):
            with _threads(1 if _kind(rows) in self._alone else None):
                yield
            return
        alone, together = tried = self._tried[_kind(rows)]
        is_alone = len(alone) <= len(together)
        with _threads(1 if is_alone else None):
            started_at = time.process_time()  # not the clock: other programs may be busy just now
            yield
            (alone if is_alone else together).append(time.process_time() - started_at)
        if min(map(len, tried)) < TRIES:
            return
        if min(together) <= MOST_TOTAL * min(alone):
            self._together_from = min(self._together_from, _kind(rows))
        else:
            self._alone.add(_kind(rows))


def _kind(rows: int) -> int:
    """Steps of about the same width are of one kind: up to twice as wide."""
    return rows.bit_length()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads; without a number, as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
