"""Products of rows with a weight: on a CPU by the faster of the two libraries that torch has for them."""

from typing import Any

import torch
from torch import Tensor

FEWEST = 600_000
"""Multiplications from which on oneDNN is worth the ten microseconds that a call of it takes."""

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
        self._ordered: Tensor | None = None
        if _ONE_DNN is not None and weight.device.type == "cpu" and weight.dtype == torch.float32:
            self._ordered = weight.detach()
            if weight.nbytes <= LARGEST_COPY:
                self._ordered = _ONE_DNN._reorder_linear_weight(self._ordered)

    def __call__(self, x: Tensor) -> Tensor:
        """[n, outputs] of `x` [n, inputs]."""
        if self._ordered is not None and x.numel() * self._outputs >= FEWEST:
            result: Tensor = _ONE_DNN._linear_pointwise(x, self._ordered, self._bias, "none", [], "")
            return result
        if self._bias is None:
            return torch.mm(x, self._transposed)
        return torch.addmm(self._bias, x, self._transposed)
