"""Attention of a few new positions over slot-indexed rings as a Triton kernel: it reads only what its rows may see.

The same arithmetic as `attention.prepare`, but which positions are visible is worked out on the device, so that nothing
about a step has to be known on the host. The context of each row and head is split among several programs where few
rows alone would leave a GPU idle; a second kernel joins their parts.

`TRITON_INTERPRET=1`, set before this is imported, runs the kernels on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Positions that a program reads at a time: what leaves several programs room on one multiprocessor."""

PROGRAMS = 1024
"""Programs that a launch should have at least, not tuned: several for each multiprocessor of a large GPU (132)."""


def attend(
    queries: Tensor,
    values: Tensor,
    scales: Tensor | None,
    slots: Tensor,
    positions: Tensor,
    oldest: Tensor,
    splits: int | None = None,
) -> Tensor:
    """Attention of each row's new positions over its own ring, in which they have been written already.

    `queries` [n, T, heads, dim] of the new positions `positions` int64 [n] and following; `values` [slots, 2, heads,
    context, dim] (keys, then values), multiplied by `scales` float32 [slots, 2, heads, context] unless None; `oldest`
    int64 [n] are the oldest positions that the rings may hold. Each query sees what its ring holds once all T are
    written, up to itself. The context is split into `splits` parts, a power of two; None chooses.
    Returns [n, T, heads * dim] in the dtype of the queries.
    """
    rows, steps, heads, dim = queries.shape
    context = values.shape[3]
    if steps > context:
        raise ValueError(f"expected at most {context} new positions, got {steps}")
    if queries.stride(3) != 1 or queries.stride(2) != dim:
        raise ValueError(f"expected queries with neighbouring heads, got strides {queries.stride()}")
    if splits is None:
        splits = _splits(rows * heads, context)
    out = queries.new_empty(rows, steps, heads * dim)
    if splits == 1:
        sums = norms = out  # not used
    else:
        sums = torch.empty(rows, steps, heads, splits, dim, device=queries.device, dtype=torch.float32)
        norms = torch.empty(rows, steps, heads, splits, 2, device=queries.device, dtype=torch.float32)
    padded_dim = triton.next_power_of_2(dim)
    _attend_part[(rows, heads, splits)](
        queries, values, values if scales is None else scales, slots, positions, oldest, out, sums, norms,
        queries.stride(0), queries.stride(1), dim**-0.5,
        STEPS=steps, HEADS=heads, CONTEXT=context, DIM=dim, SPLITS=splits, SCALED=scales is not None,
        QUERIES=triton.next_power_of_2(steps), DIMS=padded_dim, SIZE=BLOCK,
    )  # fmt: skip
    if splits > 1:
        _join_parts[(rows, steps, heads)](
            sums, norms, out, STEPS=steps, HEADS=heads, DIM=dim, SPLITS=splits, DIMS=padded_dim
        )
    return out


def _splits(programs: int, context: int) -> int:
    """Parts of the context, a power of two, that make PROGRAMS out of `programs` while there are blocks for them."""
    return int(triton.next_power_of_2(min(triton.cdiv(PROGRAMS, programs), triton.cdiv(context, BLOCK))))


@triton.jit
def _attend_part(  # type: ignore[no-untyped-def]
    queries, values, scales, slots, positions, oldest, out, sums, norms, row_stride, step_stride, scale,
    STEPS: tl.constexpr, HEADS: tl.constexpr, CONTEXT: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr,
    SCALED: tl.constexpr, QUERIES: tl.constexpr, DIMS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row)
    first = tl.maximum(tl.load(oldest + row), position + STEPS - CONTEXT)
    held, ahead = (position + STEPS - first).to(tl.int32), (position - first).to(tl.int32)
    origin = (first % CONTEXT).to(tl.int32)  # where the ring holds the first visible position
    span = (held + SPLITS * SIZE - 1) // (SPLITS * SIZE) * SIZE
    start = part * span
    stop = tl.minimum(start + span, held)

    step, dim = tl.arange(0, QUERIES), tl.arange(0, DIMS)
    given = (step < STEPS)[:, None] & (dim < DIM)[None, :]
    asked = queries + row.to(tl.int64) * row_stride + step[:, None] * step_stride + head * DIM + dim[None, :]
    query = tl.load(asked, mask=given, other=0.0).to(tl.float32) * scale
    keys = (tl.load(slots + row) * 2 * HEADS + head) * CONTEXT
    behind = HEADS * CONTEXT  # a slot's values lie behind its keys
    values += keys * DIM
    scales += keys

    # Every place in a block keeps a softmax of its own: nothing passes between threads until the end.
    peak = tl.full([QUERIES, SIZE], -1e30, tl.float32)  # finite, as the difference of two infinities is not
    total = tl.full([QUERIES, SIZE], 0.0, tl.float32)
    mean = tl.full([QUERIES, SIZE, DIMS], 0.0, tl.float32)
    for begin in range(start, stop, SIZE):
        offset = begin + tl.arange(0, SIZE)
        inside = offset < stop
        place = (origin + offset) % CONTEXT
        mask = inside[None, :, None] & (dim < DIM)[None, None, :]
        pointers = values + place[None, :, None] * DIM + dim[None, None, :]
        key = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(pointers + behind * DIM, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(query[:, None, :] * key, 2)
        if SCALED:
            score *= tl.load(scales + place, mask=inside, other=0.0)[None, :]
        visible = inside[None, :] & (offset[None, :] <= ahead + step[:, None])
        score = tl.where(visible, score, -float("inf"))
        higher = tl.maximum(peak, score)
        decay, weight = tl.exp(peak - higher), tl.exp(score - higher)
        total = total * decay + weight
        if SCALED:
            weight *= tl.load(scales + place + behind, mask=inside, other=0.0)[None, :]
        mean = mean * decay[:, :, None] + weight[:, :, None] * value
        peak = higher
    highest = tl.max(peak, 1)
    share = tl.exp(peak - highest[:, None])
    whole = tl.sum(total * share, 1)
    joined = tl.sum(mean * share[:, :, None], 1)

    target = (row.to(tl.int64) * STEPS + step) * HEADS + head
    if SPLITS == 1:
        tl.store(out + target[:, None] * DIM + dim[None, :], joined / whole[:, None], mask=given)
    else:
        target = target * SPLITS + part
        tl.store(sums + target[:, None] * DIM + dim[None, :], joined, mask=given)
        tl.store(norms + target * 2, highest, mask=step < STEPS)
        tl.store(norms + target * 2 + 1, whole, mask=step < STEPS)


@triton.jit
def _join_parts(  # type: ignore[no-untyped-def]
    sums, norms, out,
    STEPS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    row, step, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    target = (row.to(tl.int64) * STEPS + step) * HEADS + head
    part, dim = target * SPLITS + tl.arange(0, SPLITS), tl.arange(0, DIMS)
    peak = tl.load(norms + part * 2)
    share = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(share * tl.load(norms + part * 2 + 1), 0)
    inside = dim < DIM
    mean = tl.load(sums + part[:, None] * DIM + dim[None, :], mask=inside[None, :], other=0.0)
    tl.store(out + target * DIM + dim, tl.sum(mean * share[:, None], 0) / total, mask=inside)
