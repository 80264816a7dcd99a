"""The arithmetic floor: no step can be faster than its bytes and its operations on this machine.

A step reads the weights once, and the caches of every stream once; what lies between the layers counts nothing.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from loadtest.engine.machine import Machine
from loadtest.engine.sides import Upstream
from serve_app.model import Checkpoint
from serve_app.speech import FRAME_SAMPLES


@dataclass(frozen=True)
class Work:
    """What a step must do at full context."""

    weight_bytes: int
    """Read once per step."""
    bytes_per_stream: int
    """Caches read per stream."""
    operations_per_stream: float
    """Additions and multiplications per stream."""

    def floor_s(self, streams: int, machine: Machine) -> float:
        """Seconds that a step of so many streams takes at least."""
        moved = (self.weight_bytes + streams * self.bytes_per_stream) / machine.bytes_per_s
        return max(moved, streams * self.operations_per_stream / machine.operations_per_s)


def work_of(checkpoint: Checkpoint, bytes_per_stream: int) -> Work:
    """Count the work of one stream's step: moshi's, with all positions of its context."""
    upstream = Upstream(checkpoint, 1)
    try:
        with FlopCounterMode(display=False) as counter:
            upstream.step(np.zeros(1, np.int64), np.zeros((1, FRAME_SAMPLES), np.float32))
    finally:
        upstream.close()
    return Work(_weight_bytes(checkpoint), bytes_per_stream, float(counter.get_total_flops()))


def _weight_bytes(checkpoint: Checkpoint) -> int:
    """Weights that every step reads; of embeddings it reads a few rows."""
    lm, mimi = checkpoint.lm, checkpoint.mimi
    read: list[torch.nn.Module] = [lm.transformer, lm.out_norm, lm.text_linear, lm.extra_heads]
    codebooks = (
        layer._codebook.embedding
        for half in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        for layer in half.vq.layers[: half.n_q]
    )
    parameters = chain(*(module.parameters() for module in (*read, mimi.encoder, mimi.encoder_transformer)), codebooks)
    return sum(weight.nbytes for weight in parameters)
