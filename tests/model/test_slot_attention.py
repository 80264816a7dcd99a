"""The Triton kernels against plain PyTorch: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moshi_reference import CPU

from serve_app.model import attention, slot_attention
from serve_app.model.ring_cache import RingCache
from serve_app.model.rows import Rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def filled_cache(slots: int, heads: int, context: int, dim: int, dtype: torch.dtype, eight_bit: bool) -> RingCache:
    cache = RingCache((1, slots, heads, context, dim), torch.zeros(0, dtype=dtype), eight_bit)
    for position in range(context):
        places = cache.places(torch.arange(slots), torch.full((slots, 1), position))
        cache.write(0, places, torch.randn(slots, 1, 2, heads, dim, dtype=dtype))
    return cache


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_rows_equal_plain_attention(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000), label="seed"))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), label="dtype")
    eight_bit = data.draw(st.booleans(), label="eight_bit")
    steps = data.draw(st.sampled_from([1, 2, 3]), label="steps")
    heads, dim = data.draw(st.sampled_from([(1, 16), (2, 12), (1, 64)]), label="heads, dim")
    context = data.draw(st.integers(steps, 3 * slot_attention.BLOCK), label="context")
    splits = data.draw(st.sampled_from([None, 1, 2, 4]), label="splits")
    slots = np.array(sorted(data.draw(st.sets(st.integers(0, 4), min_size=1, max_size=3), label="slots")))
    positions = np.array([data.draw(st.integers(0, 3 * context), label="position") for _ in range(5)])
    oldest = np.array([data.draw(st.integers(0, int(position)), label="oldest") for position in positions])
    cache = filled_cache(5, heads, context, dim, dtype, eight_bit)
    queries = torch.randn(len(slots), steps, 3, heads, dim, dtype=dtype)[:, :, 0]

    plain = torch.stack([cache.read(0, slot, torch.arange(context)) for slot in range(5)])
    rows = Rows(slots, CPU)
    attend = attention.prepare(rows, positions[slots], oldest[slots], steps, plain)
    expected = attend(queries.flatten(0, 1), plain).view(len(slots), steps, -1)

    got = slot_attention.attend(
        queries.to(DEVICE),
        cache.values[0].to(DEVICE),
        None if cache.scales is None else cache.scales[0].to(DEVICE),
        *(torch.from_numpy(numbers).to(DEVICE) for numbers in (slots, positions[slots], oldest[slots])),
        splits=splits,
    )
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got.cpu(), expected, atol=tolerance, rtol=tolerance)


def test_what_a_row_may_not_see_does_not_matter() -> None:
    cache = filled_cache(2, 1, 8, 16, torch.float32, False)
    queries, rows = torch.randn(1, 1, 1, 16, device=DEVICE), torch.tensor([[1], [5], [3]], device=DEVICE)
    values = cache.values[0].to(DEVICE)
    before = slot_attention.attend(queries, values, None, *rows)
    values[0] = values[1, :, :, [0, 1, 2, 6, 7]] = float("nan")
    torch.testing.assert_close(slot_attention.attend(queries, values, None, *rows), before, rtol=0, atol=0)


def test_more_positions_than_the_ring_holds_are_refused() -> None:
    cache = filled_cache(1, 1, 2, 16, torch.float32, False)
    numbers = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most 2 new positions, got 3"):
        slot_attention.attend(torch.zeros(1, 3, 1, 16), cache.values[0], None, numbers, numbers, numbers)
    with pytest.raises(ValueError, match="neighbouring heads"):
        slot_attention.attend(torch.zeros(1, 2, 16, 1).mT, cache.values[0], None, numbers, numbers, numbers)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from serve_app.model.slot_attention import BLOCK, _attend_part, _join_parts

TYPES = {name: "*i64" for name in ("slots", "positions", "oldest")}
TYPES |= {name: "*fp32" for name in ("sums", "norms")}
TYPES |= {"row_stride": "i32", "step_stride": "i32", "scale": "fp32"}


def check(kernel, capability, types, **constants):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    triton.compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", capability, 32))


def check_attention(capability, queries, values, steps, heads, context, dim, splits):
    scaled = values == "fp8e4nv"
    types = TYPES | {"queries": f"*{queries}", "values": f"*{values}", "out": f"*{queries}"}
    types["scales"] = "*fp32" if scaled else f"*{values}"
    check(_attend_part, capability, types, STEPS=steps, HEADS=heads, CONTEXT=context, DIM=dim, SPLITS=splits,
          SCALED=scaled, QUERIES=triton.next_power_of_2(steps), DIMS=triton.next_power_of_2(dim), SIZE=BLOCK)


check_attention(80, "bf16", "bf16", 1, 16, 750, 128, 1)  # the 1B model
check_attention(90, "bf16", "fp8e4nv", 1, 16, 750, 128, 8)
check_attention(90, "fp32", "fp32", 2, 8, 250, 64, 1)  # its codec
check(_join_parts, 90, TYPES | {"out": "*bf16"}, STEPS=1, HEADS=16, DIM=128, SPLITS=8, DIMS=128)
"""


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    # Triton brings its own assembler: no GPU is needed to see that one would accept them.
    environ = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, cwd=Path(__file__).parents[2], env=environ, timeout=90)
