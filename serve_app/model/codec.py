"""A slot-indexed streaming Mimi encoder over the weights of moshi's `MimiModel`: one frame of any subset of slots.

Exactly moshi's streaming Mimi, always in float32 (as moshi's codec is, whatever the language model's dtype).
Two rules are easily missed: the two transformer positions of a frame overwrite the two oldest ones before either of
them attends, and the downsampling convolution pads a new stream with its first latent, not with zeros.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from moshi.modules.conv import StreamingConv1d
from moshi.modules.seanet import SEANetResnetBlock
from numpy.typing import NDArray
from torch import Tensor, nn

from serve_app.model.quantizer import Quantizer
from serve_app.model.rows import Rows
from serve_app.model.transformer import RingTransformer

if TYPE_CHECKING:  # needs Triton, which only a GPU does
    from serve_app.model.static_rows import StaticRows

SHORT_OUTPUT = 64
"""Longest output for which, on a CPU, one matrix product over copied windows beats torch's convolution (up to 5x)."""


class _Past(NamedTuple):
    """What the convolutions remember of the rows of one step."""

    memory: Tensor
    """The last inputs of all convolutions, float32 [n, width], changed in place."""
    fresh: Tensor | None
    """Rows that are at their stream's first frame, bool [n]; None where there are none."""


Stage = Callable[[Tensor, _Past], Tensor]
"""One part of the encoder: input [n, channels, T] -> output."""


class _Conv:
    """A causal convolution that keeps the end of its input as left padding for the next call."""

    def __init__(self, module: Any, offset: int) -> None:
        conv = module.conv.conv
        self._weight, self._bias = conv.weight, conv.bias
        self._options = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
        self._window, self._stride = conv.kernel_size[0], conv.stride[0]
        self._shape = (conv.in_channels, module._padding_total)
        self._replicate = module.pad_mode == "replicate"  # a new stream is padded with its first sample, not zeros
        self._start, self.stop = offset, offset + conv.in_channels * module._padding_total
        self._matrix: Tensor | None = None
        if conv.weight.device.type == "cpu" and conv.dilation[0] == conv.groups == 1:
            self._matrix = conv.weight.flatten(1).T.contiguous()

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        tail = self._shape[1]
        if tail:
            left = previous = past.memory[:, self._start : self.stop].view(-1, *self._shape)
            if self._replicate and past.fresh is not None:
                left = torch.where(past.fresh[:, None, None], x[..., :1], previous)
            x = torch.cat([left, x], -1)
            previous.copy_(x[..., -tail:])
        outputs = (x.shape[-1] - self._window) // self._stride + 1
        if self._matrix is None or outputs > SHORT_OUTPUT:
            return F.conv1d(x, self._weight, self._bias, **self._options)
        windows = x.unfold(-1, self._window, self._stride).transpose(1, 2).reshape(-1, len(self._matrix))
        y = windows @ self._matrix if self._bias is None else torch.addmm(self._bias, windows, self._matrix)
        return y.view(len(x), outputs, -1).transpose(1, 2)


class Codec:
    """State of the encoder for many slots.

    A frame brings a fixed number of positions to the codec's transformer (two for Mimi, which runs at 25 Hz).
    """

    def __init__(self, mimi: Any, codebooks: int, slots: int) -> None:
        """Take the encoding half of a moshi `MimiModel` (its decoder may be None)."""
        self._width = 0
        self._convs: list[_Conv] = []
        self._encoder = self._stages(mimi.encoder.model, owns_input=False)
        self._downsample = self._conv(mimi.downsample.conv) if hasattr(mimi, "downsample") else None
        projected = mimi.encoder_transformer
        self._transformer = RingTransformer(projected.transformer, slots)
        self.positions_per_frame = int(mimi.downsample.conv.conv.conv.stride[0]) if hasattr(mimi, "downsample") else 1
        """Positions that a frame brings to the codec's transformer."""
        self.codebooks = codebooks
        """Codes per frame."""
        self._input_proj = projected.input_proj.weight if projected.input_proj is not None else None
        self._output_proj = getattr(projected.output_projs[0], "weight", None)
        self._quantize = Quantizer(mimi.quantizer, codebooks)
        self._device = next(mimi.encoder.parameters()).device
        self._memory = torch.zeros(slots, self._width, device=self._device)

    @property
    def rings(self) -> RingTransformer:
        """The codec's transformer, which knows where each slot's stream is."""
        return self._transformer

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Make `slots` int64 [n] new streams."""
        self._memory.index_fill_(0, torch.from_numpy(slots).to(self._device), 0.0)
        self._transformer.reset(slots)

    def step(self, rows: "Rows | StaticRows", frames: Tensor) -> Tensor:
        """Codes int64 [n, codebooks] of one frame per row, `frames` float32 [n, FRAME_SAMPLES]."""
        return self._quantize(self.advance(rows, frames))

    def advance(self, rows: "Rows | StaticRows", frames: Tensor) -> Tensor:
        """Like `step`, but only as far as the latents float32 [n, dimension]: enough to warm a slot up."""
        past = _Past(rows.take(self._memory), self._transformer.fresh(rows))
        x = frames[:, None]
        for stage in self._encoder:
            x = stage(x, past)
        x = x.transpose(1, 2)
        if self._input_proj is not None:
            x = F.linear(x, self._input_proj)
        x = self._transformer.step(x, rows)
        if self._output_proj is not None:
            x = F.linear(x, self._output_proj)
        x = x.transpose(1, 2)
        if self._downsample is not None:
            x = self._downsample(x, past)
        rows.put(self._memory, past.memory)
        return x[:, :, 0]

    def _conv(self, module: Any) -> _Conv:
        conv = _Conv(module, self._width)
        self._width = conv.stop
        return conv

    def _stages(self, modules: Any, owns_input: bool) -> list[Stage]:
        """Translate moshi's modules; with `owns_input` the first activation may overwrite its input."""
        stages: list[Stage] = []
        for module in modules:
            if isinstance(module, StreamingConv1d):
                stages.append(self._conv(module))
            elif isinstance(module, SEANetResnetBlock):
                stages.append(self._residual(module))
            else:
                stages.append(_activation(module, inplace=owns_input))
            owns_input = True
        return stages

    def _residual(self, module: Any) -> Stage:
        shortcut = self._conv(module.shortcut) if isinstance(module.shortcut, StreamingConv1d) else None
        block = self._stages(module.block, owns_input=False)

        def residual(x: Tensor, past: _Past) -> Tensor:
            y = x
            for stage in block:
                y = stage(y, past)
            return y.add_(x if shortcut is None else shortcut(x, past))

        return residual


def _activation(module: nn.Module, inplace: bool) -> Stage:
    if hasattr(module, "inplace"):
        module = copy.copy(module)
        module.inplace = inplace  # type: ignore[assignment]
    return lambda x, past: module(x)
