"""Keys and values as 8-bit floats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.ring_cache import RingCache, dequantise, quantise

ELEMENTS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(ELEMENTS, min_size=1, max_size=8))
def test_eight_bits_keep_an_element_to_a_sixteenth_or_the_largest_to_a_thousandth(elements: list[float]) -> None:
    x = torch.tensor([elements])
    values, scales = quantise(x)
    assert values.dtype == torch.float8_e4m3fn
    error = (dequantise(values, scales, torch.float32) - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, x.abs().max() / 1024) * 1.0001 + 1e-35).all()


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_and_nothing_else_changes(dtype: torch.dtype, eight_bit: bool) -> None:
    cache = RingCache((2, 3, 2, 5, 4), torch.zeros(0, dtype=dtype), eight_bit)
    first, new = torch.randn(2, 2, 2, 4, dtype=dtype), torch.randn(2, 2, 2, 2, 4, dtype=dtype)
    cache.start(torch.tensor([0, 2]), first)
    cache.write(1, cache.places(torch.tensor([2, 0]), torch.tensor([[4, 5], [11, 12]])), new)
    rounded, zero = cache.rounded(new), torch.zeros(2, 2, 4, dtype=dtype)
    start = cache.rounded(first)
    expected = {
        (0, 0): [start[0], zero, zero, zero, zero],
        (0, 1): [zero] * 5,
        (0, 2): [start[0], zero, zero, zero, zero],
        (1, 0): [start[1], rounded[1, 0], rounded[1, 1], zero, zero],
        (1, 1): [zero] * 5,
        (1, 2): [rounded[0, 1], zero, zero, zero, rounded[0, 0]],
    }
    for (layer, slot), positions in expected.items():
        held = cache.read(layer, slot, torch.arange(5))
        assert held.dtype == dtype
        for position, wanted in enumerate(positions):
            assert torch.equal(held[:, :, position], wanted)


def test_eight_bits_take_little_more_than_a_quarter_of_float32() -> None:
    cache = RingCache((1, 1, 16, 10, 128), torch.zeros(0), eight_bit=True)
    assert cache.scales is not None
    assert cache.values.nbytes + cache.scales.nbytes == 2 * 16 * 10 * (128 + 4)
