"""The rows of one step as tensors alone, so that a CUDA graph can record what is done with them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.model import slot_attention
from serve_app.model.ring_cache import RingCache


@dataclass(frozen=True)
class StaticRows:
    """Slots of one step, and where the rings of one transformer are; all int64 [n], on the device.

    What `rows.Rows` is where the host knows which slots these are. A slot may occur more than once only if nobody
    reads it.
    """

    index: Tensor
    """The slots."""
    positions: Tensor
    """The next position of each slot's ring."""
    oldest: Tensor
    """The oldest position that each slot's ring may hold."""

    def take(self, state: Tensor) -> Tensor:
        """A copy of the rows of `state` [slots, ...]."""
        return state.index_select(0, self.index)

    def put(self, state: Tensor, rows: Tensor) -> None:
        """Write back what `take` gave and the step changed in place."""
        state.index_copy_(0, self.index, rows)

    def times(self, steps: int) -> Tensor:
        """The next `steps` positions of each row, int64 [n, T]."""
        return self.positions[:, None] + torch.arange(steps, device=self.positions.device)

    def attend(self, cache: RingCache, layer: int, queries: Tensor) -> Tensor:
        """Attention [n * T, heads * dim] of a layer's `queries` [n * T, heads, dim] over the rows' rings."""
        scales = None if cache.scales is None else cache.scales[layer]
        asked = queries.view(len(self.index), -1, *queries.shape[1:])
        attended = slot_attention.attend(asked, cache.values[layer], scales, self.index, self.positions, self.oldest)
        return attended.flatten(0, 1)
