"""The rows of one step: which slots take part, and the cheapest way to reach their state."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COVER_LIMIT = 2
"""Slots that attention may read for each one that takes part, before copying just those is cheaper.

A copy reads, writes and reads again; attending over slots that wait costs one read each.
"""


class Rows:
    """Slots of one step in ascending order, with views of slot-indexed state instead of copies where they suffice.

    `slots` int64 [n] distinct and ascending.
    """

    def __init__(self, slots: NDArray[np.int64], device: torch.device) -> None:
        self.slots = slots
        self.index = torch.from_numpy(slots).to(device)
        self._start, self._stop = int(slots[0]), int(slots[-1]) + 1
        self._contiguous = self._stop - self._start == len(slots)
        self._covered = not self._contiguous and self._stop - self._start <= COVER_LIMIT * len(slots)

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, state: Tensor) -> Tensor:
        """The rows of `state` [slots, ...]: a view where the slots are neighbours, else a copy."""
        if self._contiguous:
            return state[self._start : self._stop]
        return state.index_select(0, self.index)

    def put(self, state: Tensor, rows: Tensor) -> None:
        """Write back what `take` gave and the step changed in place."""
        if not self._contiguous:
            state.index_copy_(0, self.index, rows)

    @property
    def attended(self) -> NDArray[np.int64]:
        """Slots whose caches attention reads: the rows' own, or every slot between them; int64 [m]."""
        return np.arange(self._start, self._stop) if self._covered else self.slots

    def caches(self, cache: Tensor) -> Tensor:
        """The caches of the attended slots, [m, ...] of `cache` [slots, ...]."""
        return cache[self._start : self._stop] if self._covered else self.take(cache)

    def spread(self, queries: Tensor) -> Tensor:
        """One query row for each attended slot, [m, ...] of `queries` [n, ...]; rows of slots that wait are zero."""
        if not self._covered:
            return queries
        spread = queries.new_zeros(self._stop - self._start, *queries.shape[1:])
        return spread.index_copy_(0, self.index - self._start, queries)

    def gather(self, attended: Tensor) -> Tensor:
        """Undo `spread`: [n, ...] of `attended` [m, ...]."""
        return attended.index_select(0, self.index - self._start) if self._covered else attended
