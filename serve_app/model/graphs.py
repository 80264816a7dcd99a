"""Steps of fixed widths, recorded as CUDA graphs: the host starts a whole step at once instead of kernel by kernel.

The rows of a step are padded up to the next of a few widths. Padding rows are new streams in a scratch slot behind the
real ones, which belongs to nobody. Everything a step needs is copied into buffers that stay where they are.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.codec import Codec
from serve_app.model.decoder import Decoder
from serve_app.model.static_rows import StaticRows
from serve_app.speech import FRAME_SAMPLES


class _Outputs(NamedTuple):
    """Results of a step, on the device or on the host; rows first."""

    tokens: Tensor  # int32 [n]
    codes: Tensor  # int16 [n, codebooks]
    pauses: Tensor  # float32 [n, heads]
    probabilities: Tensor  # float32 [n]


def step_widths(slots: int) -> list[int]:
    """Widths that steps are padded to, ascending, up to `slots`; from 8 on four per doubling: little padding."""
    finer = {width << power for power in range(1, slots.bit_length()) for width in (4, 5, 6, 7)}
    return [width for width in sorted({1, 2, 4} | finer) if width < slots] + [slots]


class GraphedSteps:
    """Steps of codec and decoder as graphs, used by a single thread.

    On a CPU the same steps run without graphs: that is for tests, `SpeechModel`'s own way is faster there.
    """

    def __init__(self, codec: Codec, decoder: Decoder, slots: int, device: torch.device) -> None:
        """Make the buffers. Codec and decoder must have a slot more than `slots`: the scratch slot."""
        self._codec, self._decoder, self._scratch, self._device = codec, decoder, slots, device
        self._widths = step_widths(slots)
        self._pinned = device.type == "cuda"
        self._rows_host, self._rows = self._buffers((slots, 5), torch.int64)
        self._frames_host, self._frames = self._buffers((slots, FRAME_SAMPLES), torch.float32)
        self._results = _Outputs(
            self._buffers((slots,), torch.int32)[0],
            self._buffers((slots, codec.codebooks), torch.int16)[0],
            self._buffers((slots, decoder.heads), torch.float32)[0],
            self._buffers((slots,), torch.float32)[0],
        )
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, _Outputs]] = {}

    def step(
        self, slots: NDArray[np.int64], frames: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
        """One frame for each of `slots`: the columns of `StepResult`."""
        count = len(slots)
        width = next(width for width in self._widths if width >= count)
        self._fill(slots, frames, width)
        if width in self._graphs:
            graph, outputs = self._graphs[width]
            graph.replay()
        else:
            outputs = self._compute(width)
        for result, output in zip(self._results, outputs, strict=True):
            result[:width].copy_(output, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._codec.rings.count(slots, self._codec.positions_per_frame)
        self._decoder.rings.count(slots, 1)
        tokens, codes, pauses, probabilities = (result[:count].numpy().copy() for result in self._results)
        return tokens, codes, pauses, probabilities

    def hear(self, slots: NDArray[np.int64], frames: Tensor) -> None:
        """One of `frames` [n, FRAME_SAMPLES] for each of `slots`, through the codec alone and without a graph."""
        places = torch.from_numpy(np.stack([slots, *self._codec.rings.places(slots)])).to(self._device)
        self._codec.advance(StaticRows(*places), frames)
        self._codec.rings.count(slots, self._codec.positions_per_frame)

    def record(self) -> None:
        """Run a step of every width, and on a GPU record it; the widest first, whose memory then serves the others.

        All rows are the scratch slot's: no stream notices.
        """
        pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        for width in reversed(self._widths):
            self._fill(np.zeros(0, np.int64), np.zeros((0, FRAME_SAMPLES), np.float32), width)
            self._compute(width)  # compiles kernels and makes workspaces, which a recording must not
            if pool is not None:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    outputs = self._compute(width)
                self._graphs[width] = graph, outputs
        if pool is not None:
            torch.cuda.empty_cache()  # graphs have memory of their own; what the first runs used is free again

    def _buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A buffer on the host, from which or to which copies run by themselves, and one on the device."""
        return (
            torch.zeros(shape, dtype=dtype, pin_memory=self._pinned),
            torch.zeros(shape, dtype=dtype, device=self._device),
        )

    def _fill(self, slots: NDArray[np.int64], frames: NDArray[np.float32], width: int) -> None:
        count = len(slots)
        rows = self._rows_host.numpy()
        rows[:count, 0] = slots
        rows[:count, 1:3] = self._codec.rings.places(slots).T
        rows[:count, 3:5] = self._decoder.rings.places(slots).T
        rows[count:width] = (self._scratch, 0, 0, 0, 0)
        self._frames_host.numpy()[:count] = frames  # what padding rows hear does not matter
        self._rows[:width].copy_(self._rows_host[:width], non_blocking=True)
        self._frames[:width].copy_(self._frames_host[:width], non_blocking=True)

    def _compute(self, width: int) -> _Outputs:
        """A step of the first `width` rows of the buffers: tensors of fixed shapes, nothing read from the device."""
        index, *places = self._rows[:width].T.contiguous()
        codes = self._codec.step(StaticRows(index, *places[:2]), self._frames[:width])
        tokens, pauses, probabilities = self._decoder.step(StaticRows(index, *places[2:]), codes)
        return _Outputs(tokens.to(torch.int32), codes.to(torch.int16), pauses, probabilities)
