"""Attention of a few new positions over slot-indexed rings of keys and values.

A ring holds the last `context` positions of one slot: position p lies at index p % context. What a step's attention
needs to know is prepared once for all layers; so a device-specific kernel can take its place.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.rows import Rows

with warnings.catch_warnings():  # with the first one torch says, once, that its sparse matrices are young
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(1), torch.zeros(0), torch.zeros(0), (0, 0))

FEW_ROWS = 5
"""Neighbouring rows for which preparing to read caches where they lie costs more than it saves."""

Attention = Callable[[Tensor, Tensor], Tensor]
"""Attention of each row's new positions over its own ring, the new positions included: from queries
[n * T, heads, dim] and a layer's cache [slots, 2, heads, context, dim] (keys, then values) to [n * T, heads * dim]."""


def prepare(
    rows: Rows, positions: NDArray[np.int64], oldest: NDArray[np.int64], steps: int, cache: Tensor
) -> Attention:
    """Attention of `steps` new positions of each row over caches like `cache`, once their keys are written.

    `positions` int64 [n] are the rows' first new positions, `oldest` int64 [n] the oldest ones that their rings may
    hold.
    """
    length, hidden = hidden_entries(positions, oldest, steps, cache.shape[3])
    bias = None
    if hidden is not None:
        bias = torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0))).to(cache)
    few = rows.contiguous and len(rows) <= FEW_ROWS
    if cache.device.type == "cpu" and cache.dtype == torch.float32 and not few:
        return _in_place(rows.slots, length, bias, steps, cache)

    def attend(queries: Tensor, cache: Tensor) -> Tensor:
        held = rows.take(cache[..., :length, :])
        asked = queries.view(-1, steps, *queries.shape[1:]).transpose(1, 2)
        attended = F.scaled_dot_product_attention(asked, held[:, 0], held[:, 1], attn_mask=bias)
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)

    return attend


def _in_place(slots: NDArray[np.int64], length: int, bias: Tensor | None, steps: int, cache: Tensor) -> Attention:
    """Attention on a CPU that reads keys and values where they lie, whichever slots they belong to.

    The scores are a few entries of the product of queries and all keys: a sparse matrix, of which torch computes only
    these. Their weights then sum values like embeddings in a bag. Torch's own attention, which takes one head of one
    row at a time, is half as fast, and wants the caches of slots that are not neighbours copied; but in bfloat16 there
    is nothing else.
    """
    heads, context, dim = cache.shape[2:]
    shape = (len(slots), steps, heads, length)
    first = (slots[:, None] * (2 * heads) + np.arange(heads)) * context  # of the keys of each head
    entries = np.empty(shape, np.int32)
    np.add(first.astype(np.int32)[:, None, :, None], np.arange(length, dtype=np.int32), out=entries)
    keys = torch.from_numpy(entries.reshape(-1))
    starts = torch.arange(0, len(keys) + 1, length, dtype=torch.int32)
    hidden = None if bias is None else bias.transpose(1, 2)
    scores = torch.zeros(shape)  # not empty: times a beta of 0, what is no number stays none
    queries_by_keys = torch.sparse_csr_tensor(
        starts, keys, scores.view(-1), (len(starts) - 1, cache[..., 0].numel()), check_invariants=False
    )
    scale = 1 / math.sqrt(dim)
    beta = 0 if hidden is None else 1  # whether scores begin with what is in there

    def attend(queries: Tensor, cache: Tensor) -> Tensor:
        table = cache.view(-1, dim)
        if hidden is not None:
            scores.copy_(hidden)
        torch.sparse.sampled_addmm(
            queries_by_keys, queries.reshape(-1, dim), table.T, beta=beta, alpha=scale, out=queries_by_keys
        )
        weights = scores.softmax(-1).view(-1)
        values = table[heads * context :]  # a slot's values lie behind its keys
        attended = torch.embedding_bag(values, keys, starts, per_sample_weights=weights, include_last_offset=True)[0]
        return attended.view(len(queries), heads * dim)

    return attend


def hidden_entries(
    positions: NDArray[np.int64], oldest: NDArray[np.int64], steps: int, context: int
) -> tuple[int, NDArray[np.bool_] | None]:
    """What `steps` new positions per ring may not see, once their keys are written.

    moshi writes all new positions into the ring before it attends (`RingKVCache.complete`), so where a frame brings two
    positions, the first of them no longer sees the oldest one. `positions` int64 [n] are the first new positions,
    `oldest` int64 [n] the oldest ones that rings may hold. Returns how many ring entries have to be read, and which of
    them are hidden, bool [n, 1, steps, length], None where all of them are visible.
    """
    last = positions + steps - 1
    length = int(min(context, last.max() + 1))
    if steps == 1 and bool((np.maximum(oldest, last - context + 1) + length == last + 1).all()):
        return length, None
    held = last[:, None] - (last[:, None] - np.arange(length)) % context  # [n, length], the position of each entry
    query = positions[:, None] + np.arange(steps)
    hidden = (held[:, None] > query[..., None]) | (held < oldest[:, None])[:, None]
    return length, hidden[:, None]
