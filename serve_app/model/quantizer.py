"""Nearest codewords of Mimi's split residual quantizer, with everything that does not depend on the input prepared."""

from typing import Any

import torch
from torch import Tensor

from serve_app.model.product import Product


class Quantizer:
    """The encoding half of moshi's `SplitResidualVectorQuantizer`.

    Its first codebooks ("semantic") and the others quantize two separate projections of the same latent.
    """

    def __init__(self, module: Any, codebooks: int) -> None:
        """Take the first `codebooks` codebooks of a moshi `SplitResidualVectorQuantizer`."""
        halves = (module.rvq_first, module.rvq_rest)
        self._projection = Product(torch.cat([half.input_proj.weight[:, :, 0] for half in halves]))
        layers = [half.vq.layers for half in halves]
        counts = (len(layers[0]), codebooks - len(layers[0]))
        self._halves = [
            [self._prepare(layer._codebook.embedding) for layer in half[:count]]
            for half, count in zip(layers, counts, strict=True)
        ]

    @staticmethod
    def _prepare(embedding: Tensor) -> tuple[Tensor, Product]:
        # |x - e|^2 without |x|^2, which is the same for every codeword.
        return embedding, Product(embedding * -2, embedding.square().sum(-1))

    def __call__(self, latents: Tensor) -> Tensor:
        """Codes int64 [n, codebooks] of `latents` float32 [n, dimension]."""
        codes = []
        for projected, half in zip(self._projection(latents).chunk(2, -1), self._halves, strict=True):
            residual = projected
            for index, (embedding, distances) in enumerate(half):
                nearest = distances(residual).argmin(-1)
                codes.append(nearest)
                if index + 1 < len(half):
                    residual = residual - embedding.index_select(0, nearest)
        return torch.stack(codes, -1)
