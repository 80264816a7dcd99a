"""Attention of a few new positions over slot-indexed rings of keys and values.

A ring holds the last `context` positions of one slot: position p lies at index p % context. One function computes the
step's attention, so that a device-specific kernel can replace it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.rows import Rows


def attend(queries: Tensor, cache: Tensor, rows: Rows, length: int, bias: Tensor | None) -> Tensor:
    """Attention of each row's new positions over its own ring, the new positions included.

    `queries` [n, T, heads, dim], `cache` [slots, 2, heads, context, dim] (keys, then values), of whose context only
    the first `length` entries are read; `bias` [m, 1, T, length] is added to the scores of the attended slots, None
    where every entry read is visible. Returns [n, T, heads * dim].
    """
    held = rows.caches(cache[..., :length, :])
    attended = F.scaled_dot_product_attention(
        rows.spread(queries).transpose(1, 2), held[:, 0], held[:, 1], attn_mask=bias
    )
    return rows.gather(attended.transpose(1, 2).flatten(2))


def ring_bias(
    positions: NDArray[np.int64], oldest: NDArray[np.int64], steps: int, context: int, like: Tensor
) -> tuple[int, Tensor | None]:
    """What `steps` new positions per ring may see, once their keys are written.

    moshi writes all new positions into the ring before it attends (`RingKVCache.complete`), so where a frame brings two
    positions, the first of them no longer sees the oldest one. `positions` int64 [m] are the first new positions,
    `oldest` int64 [m] the oldest ones that rings may hold. Returns how many ring entries have to be read, and the bias
    [m, 1, steps, length] in the dtype and on the device of `like`, or None where all of them are visible.
    """
    last = positions + steps - 1
    length = int(min(context, last.max() + 1))
    if steps == 1 and bool((np.maximum(oldest, last - context + 1) + length == last + 1).all()):
        return length, None
    rings = torch.from_numpy(np.stack([last, oldest])).to(like.device)[..., None, None]  # [2, m, 1, 1]
    ring = torch.arange(length, device=like.device)
    held = rings[0] - (rings[0] - ring) % context  # [m, 1, length], the position that each entry holds
    query = rings[0] - torch.arange(steps - 1, -1, -1, device=like.device)[:, None]  # [m, steps, 1]
    hidden = (held > query) | (held < rings[1])
    return length, torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))[:, None]
