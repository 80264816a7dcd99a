"""A slot-indexed streaming Mimi encoder over the weights of moshi's `MimiModel`: one frame of any subset of slots.

Exactly moshi's streaming Mimi, always in float32 (as moshi's codec is, whatever the language model's dtype).
Two rules are easily missed: the two transformer positions of a frame overwrite the two oldest ones before either of
them attends, and the downsampling convolution pads a new stream with its first latent, not with zeros.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from moshi.modules.conv import StreamingConv1d
from moshi.modules.seanet import SEANetResnetBlock
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.product import Product
from serve_app.model.quantizer import Quantizer
from serve_app.model.rows import Rows
from serve_app.model.transformer import RingTransformer
from serve_app.speech import FRAME_SAMPLES

if TYPE_CHECKING:  # needs Triton, which only a GPU does
    from serve_app.model.static_rows import StaticRows

CPU_ROWS = 16
"""Rows that a CPU takes through the convolutions at once: enough to be worth the calls, and what they compute at the
audio's rate should fit its caches."""

PRODUCT_COLUMNS = 64
"""Columns from which on a matrix product keeps a processor busy."""


class _Past(NamedTuple):
    """What the convolutions remember of the rows of one step."""

    memory: Tensor
    """What the convolutions keep for the next frame, float32 [n, width], changed in place."""
    fresh: Tensor | None
    """Rows that are at their stream's first frame, bool [n]; None where there are none."""

    def part(self, rows: slice) -> "_Past":
        """The same of some of the rows."""
        return _Past(self.memory[rows], None if self.fresh is None else self.fresh[rows])


Stage = Callable[[Tensor, _Past], Tensor]
"""One part of the encoder: input [n, T, channels] -> output. Channels come last: a convolution is a matrix product."""


class _AudioConv:
    """A causal convolution of stride 1 over the audio itself, as a product of copied windows.

    Each window gives as many neighbouring outputs as make rows that are worth a product: the audio has one channel, and
    of a small codec the outputs are few, too. Keeps the end of its input as left padding for the next frame.
    """

    def __init__(self, module: Any, offset: int) -> None:
        conv = module.conv.conv
        kernel, channels = conv.kernel_size[0], conv.out_channels
        most = max(1, PRODUCT_COLUMNS // channels)
        self._outputs = max(size for size in range(1, most + 1) if FRAME_SAMPLES % size == 0)
        self._window, self._tail = self._outputs + kernel - 1, module._padding_total
        # Samples of a window by outputs and their channels: a band, as the next output hears samples one later.
        matrix = conv.weight.new_zeros(self._window, self._outputs, channels)
        for output in range(self._outputs):
            matrix[output : output + kernel, output] = conv.weight[:, 0].T
        self._product = Product(matrix.flatten(1).T.contiguous(), conv.bias.repeat(self._outputs))
        self._replicate = module.pad_mode == "replicate"
        self._start, self.stop = offset, offset + self._tail

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        kept = past.memory[:, self._start : self.stop]
        audio = torch.cat([kept, x[..., 0]], 1)
        if self._replicate and past.fresh is not None:
            audio[:, : self._tail] = torch.where(past.fresh[:, None], x[:, 0], kept)
        kept.copy_(audio[:, audio.shape[1] - self._tail :])
        windows = audio.unfold(1, self._window, self._outputs).reshape(-1, self._window)
        return self._product(windows).view(len(x), x.shape[1], -1)


class _Conv:
    """A causal convolution whose kernel is `taps` times its stride.

    Every block of `stride` inputs adds to `taps` outputs, its own and later ones. One product gives all that a block
    adds, without copies of windows; what is due after the end of the frame is kept for the next one.
    """

    def __init__(self, module: Any, offset: int) -> None:
        conv = module.conv.conv
        self._stride, self._spacing = conv.stride[0], conv.dilation[0]
        self._taps, self._channels = conv.kernel_size[0] // self._stride, conv.out_channels
        self._later = (self._taps - 1) * self._spacing
        weight = conv.weight.view(self._channels, -1, self._taps, self._stride).flip(2)
        matrix = weight.permute(2, 0, 3, 1).flatten(2).flatten(0, 1).contiguous()
        bias = None if conv.bias is None else F.pad(conv.bias, (0, len(matrix) - self._channels))
        self._product, self._inputs = Product(matrix, bias), matrix.shape[1]
        self._first: Tensor | None = None
        if module.pad_mode == "replicate":  # as if everything before a new stream was its first input
            adds = weight.sum(3)  # [channels, inputs, taps]
            due = [adds[..., output // self._spacing + 1 :].sum(-1).T for output in range(self._later)]
            self._first = torch.cat(due, 1)
        self._start, self.stop = offset, offset + self._later * self._channels

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        outputs = x.shape[1] // self._stride
        adds = self._product(x.reshape(-1, self._inputs))
        if not self._later:
            return adds.view(len(x), outputs, -1)
        taps = adds.view(len(x), outputs, self._taps, self._channels).unbind(2)
        kept = due = past.memory[:, self._start : self.stop].view(-1, self._later, self._channels)
        if self._first is not None and past.fresh is not None:
            due = torch.where(past.fresh[:, None, None], (x[:, 0] @ self._first).view_as(kept), kept)
        sums = F.pad(due, (0, 0, 0, outputs))
        for tap, add in enumerate(taps):
            sums.narrow(1, tap * self._spacing, outputs).add_(add)
        kept.copy_(sums[:, outputs:])
        return sums[:, :outputs]


class Codec:
    """State of the encoder for many slots.

    A frame brings a fixed number of positions to the codec's transformer (two for Mimi, which runs at 25 Hz).
    """

    def __init__(self, mimi: Any, codebooks: int, slots: int) -> None:
        """Take the encoding half of a moshi `MimiModel` (its decoder may be None)."""
        self._width = 0
        self._device = next(mimi.encoder.parameters()).device
        self._encoder = self._stages(mimi.encoder.model)
        self._downsample = self._conv(mimi.downsample.conv) if hasattr(mimi, "downsample") else None
        projected = mimi.encoder_transformer
        self._transformer = RingTransformer(projected.transformer, slots)
        self.positions_per_frame = int(mimi.downsample.conv.conv.conv.stride[0]) if hasattr(mimi, "downsample") else 1
        """Positions that a frame brings to the codec's transformer."""
        self.codebooks = codebooks
        """Codes per frame."""
        self._input_proj = Product(projected.input_proj.weight) if projected.input_proj is not None else None
        output = getattr(projected.output_projs[0], "weight", None)
        self._output_proj = None if output is None else Product(output)
        self._quantize = Quantizer(mimi.quantizer, codebooks)
        self._memory = torch.zeros(slots, self._width, device=self._device)
        self._rows_at_once = CPU_ROWS if self._device.type == "cpu" else slots

    @property
    def state_bytes(self) -> int:
        """Memory of all slots' state."""
        return self._memory.nbytes + self._transformer.state_bytes

    @property
    def rings(self) -> RingTransformer:
        """The codec's transformer, which knows where each slot's stream is."""
        return self._transformer

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Make `slots` int64 [n] new streams."""
        self._memory.index_fill_(0, torch.from_numpy(slots).to(self._device), 0.0)
        self._transformer.reset(slots)

    def pretend_full(self, slots: NDArray[np.int64]) -> None:
        """See `SpeechModel.pretend_full`."""
        self._transformer.pretend_full(slots)

    def step(self, rows: "Rows | StaticRows", frames: Tensor) -> Tensor:
        """Codes int64 [n, codebooks] of one frame per row, `frames` float32 [n, FRAME_SAMPLES]."""
        return self._quantize(self.advance(rows, frames))

    def advance(self, rows: "Rows | StaticRows", frames: Tensor) -> Tensor:
        """Like `step`, but only as far as the latents float32 [n, dimension]: enough to warm a slot up."""
        past = _Past(rows.take(self._memory), self._transformer.fresh(rows))
        pieces = (slice(start, start + self._rows_at_once) for start in range(0, len(frames), self._rows_at_once))
        x = torch.cat([self._encode(frames[piece], past.part(piece)) for piece in pieces])
        if self._input_proj is not None:
            x = self._input_proj(x.flatten(0, 1)).view(*x.shape[:2], -1)
        x = self._transformer.step(x, rows)
        if self._output_proj is not None:
            x = self._output_proj(x.flatten(0, 1)).view(*x.shape[:2], -1)
        if self._downsample is not None:
            x = self._downsample(x, past)
        rows.put(self._memory, past.memory)
        return x[:, 0]

    def _encode(self, frames: Tensor, past: _Past) -> Tensor:
        x = frames[..., None]
        for stage in self._encoder:
            x = stage(x, past)
        return x

    def _conv(self, module: Any) -> Stage:
        conv = (_AudioConv if module.conv.conv.in_channels == 1 else _Conv)(module, self._width)
        self._width = conv.stop
        return conv

    def _stages(self, modules: Any) -> list[Stage]:
        """Translate moshi's modules."""
        stages: list[Stage] = []
        for module in modules:
            if isinstance(module, StreamingConv1d):
                stages.append(self._conv(module))
            elif isinstance(module, SEANetResnetBlock):
                stages.append(self._residual(module))
            else:
                stages.append(_memoryless(module))
        return stages

    def _residual(self, module: Any) -> Stage:
        shortcut = self._conv(module.shortcut) if isinstance(module.shortcut, StreamingConv1d) else None
        block = self._stages(module.block)

        def residual(x: Tensor, past: _Past) -> Tensor:
            y = x
            for stage in block:
                y = stage(y, past)
            return y.add_(x if shortcut is None else shortcut(x, past))

        return residual


def _memoryless(module: Callable[[Tensor], Tensor]) -> Stage:
    return lambda x, past: module(x)
