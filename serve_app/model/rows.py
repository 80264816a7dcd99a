"""The rows of one step: which slots take part, and the cheapest way to reach their state."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rows:
    """Slots of one step in ascending order, with views of slot-indexed state instead of copies where they suffice.

    `slots` int64 [n] distinct and ascending.
    """

    def __init__(self, slots: NDArray[np.int64], device: torch.device) -> None:
        self.slots = slots
        self.index = torch.from_numpy(slots).to(device)
        self._start, self._stop = int(slots[0]), int(slots[-1]) + 1
        self.contiguous = self._stop - self._start == len(slots)
        """Whether the slots are neighbours."""

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, state: Tensor) -> Tensor:
        """The rows of `state` [slots, ...]: a view where the slots are neighbours, else a copy."""
        if self.contiguous:
            return state[self._start : self._stop]
        return state.index_select(0, self.index)

    def put(self, state: Tensor, rows: Tensor) -> None:
        """Write back what `take` gave and the step changed in place."""
        if not self.contiguous:
            state.index_copy_(0, self.index, rows)
