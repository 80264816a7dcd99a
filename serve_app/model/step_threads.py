"""How many threads a step on a CPU runs on: one, or all where the products are large enough to be shared.

A step is hundreds of operations, and threads wait for one another in most of them. With a large model that is nothing;
with a small one two threads that sleep while they wait take longer than one alone (the demo model, 128 rows, two cores:
23 ms against 15), and threads that spin save a fifth of the time, for the cores that the ingress wants.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SHARED_SECONDS = 0.0005
"""A product that takes one thread longer is worth sharing: waking a thread and waiting for it takes a tenth of that."""

MULTIPLICATIONS_PER_S = 100e9
"""What one thread multiplies and adds in a second, roughly."""

BYTES_PER_S = 10e9
"""What one thread reads of weights in a second, roughly."""


class StepThreads:
    """Chooses for one model. Torch's number of threads is everybody's: it is put back after each step."""

    def __init__(self, model: nn.Module) -> None:
        """The largest matrix of `model` tells; of a speech model take the language model, which does most of the work.

        More than one thread are as many as torch has now.
        """
        largest = max(model.parameters(), key=torch.numel)
        self._elements, self._bytes = largest.numel(), largest.nbytes
        self._most = torch.get_num_threads()

    def pay(self, rows: int) -> bool:
        """Whether all threads together are quicker with so many rows than one alone: the demo model's from 555 on."""
        seconds = max(rows * self._elements / MULTIPLICATIONS_PER_S, self._bytes / BYTES_PER_S)
        return seconds > SHARED_SECONDS

    @contextmanager
    def chosen(self, rows: int) -> Iterator[None]:
        """Run a step of so many rows on as many threads as pay."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._most if self.pay(rows) else 1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
