"""Products of rows with a weight: on a CPU by the faster of the two libraries that torch has for them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 1_000_000
"""Multiplications from which on oneDNN is worth the ten microseconds that a call of it takes."""

FINEST = 8
"""What numbers of rows are rounded up to a multiple of, or to an eighth of the power of two below them."""

LARGEST_COPY = 2**22
"""Bytes of the largest weight that is kept a second time, in oneDNN's order. Larger ones are put in order at each
product, which takes little of its time, instead of memory."""

_ONE_DNN: Any = torch.ops.mkldnn if torch._C._has_mkldnn else None


class Product:
    """`x` times `weight`, plus `bias`; as `torch.nn.Linear`, but on a CPU in float32 up to twice as fast.

    There torch asks MKL, which on processors that are not Intel's uses half the width of their vectors. oneDNN uses all
    of it, and takes longer only to begin.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keep `weight` [outputs, inputs] and `bias` [outputs], which must not change any more."""
        self._transposed, self._bias = weight.detach().T, None if bias is None else bias.detach()
        self._outputs = len(weight)
        self._for_one_dnn: Tensor | None = None
        if _ONE_DNN is not None and weight.device.type == "cpu" and weight.dtype == torch.float32:
            self._for_one_dnn = weight.detach()
            if weight.nbytes <= LARGEST_COPY:
                self._for_one_dnn = _ONE_DNN._reorder_linear_weight(self._for_one_dnn)

    def __call__(self, x: Tensor) -> Tensor:
        """[n, outputs] of `x` [n, inputs]."""
        if self._for_one_dnn is not None and x.numel() * self._outputs >= FEWEST:  # rows by inputs by outputs
            rows = len(x)
            if more := padded(rows) - rows:
                x = F.pad(x, (0, 0, 0, more))
            result: Tensor = _ONE_DNN._linear_pointwise(x, self._for_one_dnn, self._bias, "none", [], "")
            return result[:rows] if more else result
        if self._bias is None:
            return torch.mm(x, self._transposed)
        return torch.addmm(self._bias, x, self._transposed)


def padded(rows: int) -> int:
    """How many rows oneDNN is given instead of `rows`, an eighth more at most, beyond a few.

    It makes code for every number of rows that it meets and keeps the latest thousand. Steps come in all widths: where
    every one had code of its own, it would be made again and again, and a large engine would keep 200 MB of it.
    """
    step = max(FINEST, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step
