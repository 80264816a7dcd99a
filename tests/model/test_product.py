"""Tests of `serve_app.model.product`."""

import psutil
import pytest
import torch

from serve_app.model.product import FEWEST, LARGEST_COPY, Product, padded

SHAPES = [
    (1, 128, 384),
    (8, 128, 704),
    (33, 128, 704),
    (32, 128, 384),
    (3000, 24, 24),
    (2, 1024, 1025),
    (64, 1024, 1025),
]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_is_a_product(rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    bias = torch.randn(outputs) if with_bias else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    got = Product(weight, bias)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


def test_shapes_are_of_every_kind() -> None:
    sizes = {
        (rows * inputs * outputs < FEWEST, inputs * outputs * 4 > LARGEST_COPY) for rows, inputs, outputs in SHAPES
    }
    assert {(True, False), (False, False), (False, True)} <= sizes


def test_rows_need_not_be_neighbours_in_memory() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(384, 128), torch.randn(64, 3, 128)[:, 1]
    torch.testing.assert_close(Product(weight)(x), x @ weight.T)


@pytest.mark.parametrize("rows", [1, 64])
def test_other_types(rows: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(384, 128, dtype=torch.bfloat16), torch.randn(rows, 128, dtype=torch.bfloat16)
    got = Product(weight)(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, x @ weight.T)


def test_few_numbers_of_rows_are_many() -> None:
    widths = [padded(rows) for rows in range(1, 4097)]
    assert all(rows <= width <= max(rows + 7, 1.125 * rows) for rows, width in enumerate(widths, 1))
    assert widths == sorted(widths)
    assert len(set(widths)) < 70, "one for each would be more than oneDNN keeps"


def test_memory_does_not_grow_with_the_widths_of_steps() -> None:
    torch.manual_seed(0)
    product = Product(torch.randn(704, 128))
    process = psutil.Process()
    for rows in range(1, 2000, 8):  # whatever is made once
        product(torch.zeros(rows, 128))
    before = process.memory_info().rss
    for rows in range(1, 2000):
        product(torch.zeros(rows, 128))
    assert process.memory_info().rss - before < 30e6
