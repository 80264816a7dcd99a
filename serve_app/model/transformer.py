"""A streaming transformer over slot-indexed rings, with the weights of moshi's `StreamingTransformer`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from moshi.modules.transformer import LayerNormF32, RMSNorm
from numpy.typing import NDArray
from torch import Tensor, nn

from serve_app.model.attention import prepare
from serve_app.model.rows import Rows

Function = Callable[[Tensor], Tensor]


def norm_function(module: nn.Module) -> Function:
    """The normalisation that a moshi module computes, without its lazy `torch.compile`."""
    if isinstance(module, RMSNorm):
        alpha, eps, dtype = module.alpha.detach().reshape(-1), module.eps, module.dtype

        def rms_norm(x: Tensor) -> Tensor:
            wide = x if dtype is None else x.to(dtype)
            return F.rms_norm(wide, alpha.shape, alpha.to(wide.dtype), eps).to(x.dtype)

        return rms_norm
    if not isinstance(module, nn.LayerNorm):
        raise TypeError(f"expected RMSNorm or LayerNorm, got {type(module).__name__}")
    weight, bias, eps, wide = module.weight, module.bias, module.eps, isinstance(module, LayerNormF32)

    def layer_norm(x: Tensor) -> Tensor:
        if wide:
            return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    return layer_norm


class _Layer:
    """Weights of one layer and the arithmetic before and after its attention."""

    def __init__(self, module: Any) -> None:
        self._norm1, self._norm2 = norm_function(module.norm1), norm_function(module.norm2)
        self._in_proj: Tensor = module.self_attn.in_projs[0].weight
        self._out_proj: Tensor = module.self_attn.out_projs[0].weight
        self._heads = int(module.self_attn.num_heads)
        self._gated = module.gating is not None
        first, second = (
            (module.gating.linear_in, module.gating.linear_out) if self._gated else (module.linear1, module.linear2)
        )
        self._ffn_in, self._ffn_out = first.weight, second.weight
        self._activation: Function = module.gating.activation if self._gated else module.activation
        self._scales: list[Tensor | None] = [
            getattr(scale, "scale", None) for scale in (module.layer_scale_1, module.layer_scale_2)
        ]

    def project(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotated queries, rotated keys and values, [n, T, 3, heads, dim], of `x` [n, T, width]."""
        qkv = F.linear(self._norm1(x), self._in_proj).view(*x.shape[:2], 3, self._heads, -1)
        turned = qkv[:, :, :2].view(*x.shape[:2], 2, self._heads, -1, 2)  # pairs, for complex multiplication
        if turned.dtype == torch.float32:
            torch.view_as_complex(turned).mul_(rotation)
        else:  # moshi rotates in float32 and rounds once
            turned.copy_(torch.view_as_real(torch.view_as_complex(turned.float()) * rotation))
        return qkv

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, from its input and what attention gave; both [n, T, width]."""
        x = self._add(x, F.linear(attended, self._out_proj), self._scales[0])
        hidden = F.linear(self._norm2(x), self._ffn_in)
        if self._gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self._activation(gate) * value
        else:
            hidden = self._activation(hidden)
        return self._add(x, F.linear(hidden, self._ffn_out), self._scales[1])

    @staticmethod
    def _add(x: Tensor, update: Tensor, scale: Tensor | None) -> Tensor:
        return (update if scale is None else update.mul_(scale)).add_(x)


class RingTransformer:
    """Layers over rings of keys and values, one ring of `context` positions for each slot.

    Positions are counted on the host: nothing has to be read back from the device to know how much of the rings is
    filled.
    """

    def __init__(self, module: Any, slots: int) -> None:
        """Take the weights of a moshi `StreamingTransformer` (rope, causal, no cross attention) as they are."""
        attention = module.layers[0].self_attn
        weight: Tensor = attention.in_projs[0].weight
        self.context = int(attention.context)
        self._layers = [_Layer(layer) for layer in module.layers]
        self._heads = int(attention.num_heads)
        self._dim = attention.embed_dim // self._heads
        half = torch.arange(self._dim // 2, dtype=torch.float32, device=weight.device)
        self._frequencies = torch.exp(half * (-math.log(module.max_period) * 2 / self._dim))  # moshi's `apply_rope`
        self._device = weight.device
        # One head's keys (and its values) of one slot lie together, as attention reads them.
        self._caches = torch.zeros(
            len(self._layers), slots, 2, self._heads, self.context, self._dim, device=weight.device, dtype=weight.dtype
        )
        self.positions: NDArray[np.int64] = np.zeros(slots, np.int64)
        """Next position of each slot, int64 [slots]."""
        self._oldest: NDArray[np.int64] = np.zeros(slots, np.int64)

    def reset(self, slots: NDArray[np.int64], position: int = 0) -> None:
        """Empty the rings of `slots`; the next position to come is `position`."""
        self.positions[slots] = position
        self._oldest[slots] = position

    def first_position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, 2, heads, dim] of position 0, and the output [1, width], for `x` [1, width]."""
        x, kept, rotation = x[:, None], [], self._rotation(np.zeros(1, np.int64), 1)
        for layer in self._layers:
            qkv = layer.project(x, rotation)
            kept.append(qkv[0, 0, 1:])
            x = layer.finish(x, qkv[:, :, 2].flatten(2))  # attention over one position returns its value
        return torch.stack(kept), x[:, 0]

    def start(self, slots: NDArray[np.int64], first: Tensor) -> None:
        """Fill the rings of `slots` with position 0 only, as `first_position` gave it."""
        self.reset(slots)
        self._caches[:, torch.from_numpy(slots).to(self._device), :, :, 0] = first[:, None]
        self.positions[slots] = 1

    def step(self, x: Tensor, rows: Rows) -> Tensor:
        """Advance each row by the positions in `x` [n, T, width], T <= context; returns [n, T, width]."""
        steps = x.shape[1]
        positions = self.positions[rows.slots]
        rotation = self._rotation(positions, steps)
        attend = prepare(rows, positions, self._oldest[rows.slots], steps, self._caches[0])
        places = (positions[:, None] + np.arange(steps)) % self.context
        rings = rows.slots[:, None] * (2 * self._heads) + np.arange(2 * self._heads)
        written = rings[:, None] * self.context + places[..., None]  # [n, T, 2 * heads]
        index = torch.from_numpy(written.reshape(-1)).to(self._device)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            qkv = layer.project(x, rotation)
            cache.view(-1, self._dim).index_copy_(0, index, qkv[:, :, 1:].reshape(-1, self._dim))
            x = layer.finish(x, attend(qkv[:, :, 0], cache))
        self.positions[rows.slots] += steps
        return x

    def extend(self, x: Tensor, slot: int) -> None:
        """Advance one slot by the positions in `x` [T, width] in one pass, each attending as if it had come alone."""
        steps, context, position = len(x), self.context, int(self.positions[slot])
        oldest = int(self._oldest[slot])
        x = x[None]
        rotation = self._rotation(np.array([position]), steps)
        ring = np.arange(min(context, position))
        held = position - 1 - (position - 1 - ring) % context
        filled = torch.from_numpy(ring[held >= oldest]).to(self._device)
        query = np.arange(position, position + steps)
        keys = np.concatenate([held[held >= oldest], query])
        visible = (keys <= query[:, None]) & (keys > query[:, None] - context)
        bias = torch.zeros(steps, len(keys), dtype=x.dtype).masked_fill_(~torch.from_numpy(visible), float("-inf"))
        bias = bias.to(self._device)
        kept = min(steps, context)
        index = torch.from_numpy(query[-kept:] % context).to(self._device)
        for layer, cache in zip(self._layers, self._caches[:, slot], strict=True):
            qkv = layer.project(x, rotation)
            new = qkv[0].permute(1, 2, 0, 3)  # [3, heads, T, dim]
            both = torch.cat([cache.index_select(2, filled), new[1:]], 2)
            attended = F.scaled_dot_product_attention(new[:1], both[:1], both[1:], attn_mask=bias)[0]
            cache.index_copy_(2, index, new[1:, :, -kept:])
            x = layer.finish(x, attended.transpose(0, 1).flatten(1)[None])
        self.positions[slot] += steps

    def _rotation(self, positions: NDArray[np.int64], steps: int) -> Tensor:
        """Rotary embedding of `steps` positions per row as complex numbers, complex64 [n, steps, 1, 1, dim / 2].

        Computed once per step for all layers; a table of all positions would grow with the longest stream.
        """
        times = torch.from_numpy((positions[:, None] + np.arange(steps)).astype(np.float32)).to(self._device)
        angles = self._frequencies * times[..., None, None, None]
        return torch.polar(torch.ones_like(angles), angles)
