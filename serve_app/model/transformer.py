"""A streaming transformer over slot-indexed rings, with the weights of moshi's `StreamingTransformer`."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from moshi.modules.transformer import LayerNormF32, RMSNorm
from numpy.typing import NDArray
from torch import Tensor, nn

from serve_app.model.attention import Attention, prepare
from serve_app.model.product import Product
from serve_app.model.ring_cache import RingCache
from serve_app.model.rows import Rows

if TYPE_CHECKING:  # needs Triton, which only a GPU does
    from serve_app.model.static_rows import StaticRows

Function = Callable[[Tensor], Tensor]


def norm_function(module: nn.Module) -> Function:
    """The normalisation that a moshi module computes, without its lazy `torch.compile`."""
    if isinstance(module, RMSNorm):
        alpha, eps, dtype = module.alpha.detach().reshape(-1), module.eps, module.dtype
        offset = alpha.new_tensor(eps, dtype=torch.float32)

        def rms_norm(x: Tensor) -> Tensor:
            wide = x if dtype is None else x.to(dtype)
            if wide.device.type == "cpu" and wide.dtype == torch.float32:  # there torch's own takes a dozen operations
                length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
                scale = torch.addcmul(offset, length, length, value=1 / len(alpha)).rsqrt_()
                return (wide * scale).mul_(alpha).to(x.dtype)
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
        self._in_proj = Product(module.self_attn.in_projs[0].weight)
        self._out_proj = Product(module.self_attn.out_projs[0].weight)
        self._heads = int(module.self_attn.num_heads)
        self._gated = module.gating is not None
        first, second = (
            (module.gating.linear_in, module.gating.linear_out) if self._gated else (module.linear1, module.linear2)
        )
        self._ffn_in, self._ffn_out = Product(first.weight), Product(second.weight)
        self._activation: Function = module.gating.activation if self._gated else module.activation
        self._scales: list[Tensor | None] = [
            getattr(scale, "scale", None) for scale in (module.layer_scale_1, module.layer_scale_2)
        ]

    def project(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotated queries, rotated keys and values, [n, 3, heads, dim], of `x` [n, width]."""
        qkv = self._in_proj(self._norm1(x)).view(len(x), 3, self._heads, -1)
        turned = qkv[:, :2].view(len(x), 2, self._heads, -1, 2)  # pairs, for complex multiplication
        if turned.dtype == torch.float32:
            torch.view_as_complex(turned).mul_(rotation)
        else:  # moshi rotates in float32 and rounds once
            turned.copy_(torch.view_as_real(torch.view_as_complex(turned.float()) * rotation))
        return qkv

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, from its input and what attention gave; both [n, width]."""
        x = self._add(x, self._out_proj(attended), self._scales[0])
        hidden = self._ffn_in(self._norm2(x))
        if self._gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self._activation(gate) * value
        else:
            hidden = self._activation(hidden)
        return self._add(x, self._ffn_out(hidden), self._scales[1])

    @staticmethod
    def _add(x: Tensor, update: Tensor, scale: Tensor | None) -> Tensor:
        return (update if scale is None else update.mul_(scale)).add_(x)


class RingTransformer:
    """Layers over rings of keys and values, one ring of `context` positions for each slot.

    Positions are counted on the host: nothing has to be read back from the device to know how much of the rings is
    filled.
    """

    def __init__(self, module: Any, slots: int, eight_bit: bool = False) -> None:
        """Take the weights of a moshi `StreamingTransformer` (rope, causal, no cross attention) as they are.

        With `eight_bit` the rings hold 8-bit floats.
        """
        attention = module.layers[0].self_attn
        weight: Tensor = attention.in_projs[0].weight
        self.context = int(attention.context)
        self._layers = [_Layer(layer) for layer in module.layers]
        self._heads = int(attention.num_heads)
        self._dim = attention.embed_dim // self._heads
        half = torch.arange(self._dim // 2, dtype=torch.float32, device=weight.device)
        self._frequencies = torch.exp(half * (-math.log(module.max_period) * 2 / self._dim))  # moshi's `apply_rope`
        self._device = weight.device
        self._cache = RingCache((len(self._layers), slots, self._heads, self.context, self._dim), weight, eight_bit)
        self.positions: NDArray[np.int64] = np.zeros(slots, np.int64)
        """Next position of each slot, int64 [slots]."""
        self._oldest: NDArray[np.int64] = np.zeros(slots, np.int64)

    @property
    def state_bytes(self) -> int:
        """Memory of all slots' rings."""
        return self._cache.nbytes

    def reset(self, slots: NDArray[np.int64], position: int = 0) -> None:
        """Empty the rings of `slots`; the next position to come is `position`."""
        self.positions[slots] = position
        self._oldest[slots] = position

    def pretend_full(self, slots: NDArray[np.int64]) -> None:
        """Fill the rings of `slots` with zeros, written so that their memory is really there."""
        self._cache.clear(torch.from_numpy(slots).to(self._device))
        self.positions[slots] = self.context
        self._oldest[slots] = 0

    def first_position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, 2, heads, dim] of position 0, and the output [1, width], for `x` [1, width]."""
        kept, rotation = [], self._rotation(self._times(np.zeros(1, np.int64), 1))
        for layer in self._layers:
            qkv = layer.project(x, rotation)
            kept.append(qkv[0, 1:])
            x = layer.finish(x, qkv[:, 2].flatten(1))  # attention over one position returns its value
        return torch.stack(kept), x

    def start(self, slots: NDArray[np.int64], first: Tensor) -> None:
        """Fill the rings of `slots` with position 0 only, as `first_position` gave it."""
        self.reset(slots)
        self._cache.start(torch.from_numpy(slots).to(self._device), first)
        self.positions[slots] = 1

    def places(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """What `StaticRows` need to know of `slots`: their next positions and the oldest they hold, int64 [2, n]."""
        return np.stack([self.positions[slots], self._oldest[slots]])

    def count(self, slots: NDArray[np.int64], steps: int) -> None:
        """Note that `slots` advanced by `steps` positions, which `StaticRows` cannot."""
        self.positions[slots] += steps

    def fresh(self, rows: "Rows | StaticRows") -> Tensor | None:
        """Rows whose next position is 0, bool [n]; None where the host knows that there are none."""
        if not isinstance(rows, Rows):
            return rows.positions == 0
        fresh = self.positions[rows.slots] == 0
        return torch.from_numpy(fresh).to(self._device) if fresh.any() else None

    def step(self, x: Tensor, rows: "Rows | StaticRows") -> Tensor:
        """Advance each row by the positions in `x` [n, T, width], T <= context; returns [n, T, width].

        For `StaticRows` the caller counts the positions.
        """
        shape, steps = x.shape, x.shape[1]
        x = x.reshape(-1, shape[2])
        attention: Callable[[int, Tensor], Tensor]  # of a layer's queries
        if isinstance(rows, Rows):
            positions = self.positions[rows.slots]
            times = self._times(positions, steps)
            prepared = prepare(rows, positions, self._oldest[rows.slots], steps, self._cache.layer(0))
            attention = partial(self._attend, prepared)
        else:
            times, attention = rows.times(steps), partial(rows.attend, self._cache)
        rotation = self._rotation(times)
        places = self._cache.places(rows.index, times)
        for number, layer in enumerate(self._layers):
            qkv = layer.project(x, rotation)
            self._cache.write(number, places, qkv[:, 1:])
            x = layer.finish(x, attention(number, qkv[:, 0]))
        if isinstance(rows, Rows):
            self.count(rows.slots, steps)
        return x.view(shape)

    def extend(self, x: Tensor, slot: int) -> None:
        """Advance one slot by the positions in `x` [T, width] in one pass, each attending as if it had come alone."""
        steps, context, position = len(x), self.context, int(self.positions[slot])
        oldest = int(self._oldest[slot])
        times = self._times(np.array([position]), steps)
        rotation = self._rotation(times)
        ring = np.arange(min(context, position))
        held = position - 1 - (position - 1 - ring) % context
        filled = torch.from_numpy(ring[held >= oldest]).to(self._device)
        query = np.arange(position, position + steps)
        keys = np.concatenate([held[held >= oldest], query])
        visible = (keys <= query[:, None]) & (keys > query[:, None] - context)
        bias = torch.zeros(steps, len(keys), dtype=x.dtype).masked_fill_(~torch.from_numpy(visible), float("-inf"))
        bias = bias.to(self._device)
        kept = min(steps, context)
        places = self._cache.places(torch.tensor([slot], device=self._device), times[:, -kept:])
        for number, layer in enumerate(self._layers):
            qkv = layer.project(x, rotation)
            new = qkv.permute(1, 2, 0, 3)  # [3, heads, T, dim]
            both = torch.cat([self._cache.read(number, slot, filled), self._cache.rounded(new[1:])], 2)
            attended = F.scaled_dot_product_attention(new[:1], both[:1], both[1:], attn_mask=bias)[0]
            self._cache.write(number, places, qkv[-kept:, 1:])
            x = layer.finish(x, attended.transpose(0, 1).flatten(1))
        self.positions[slot] += steps

    def _attend(self, attention: Attention, layer: int, queries: Tensor) -> Tensor:
        return attention(queries, self._cache.layer(layer))

    def _times(self, positions: NDArray[np.int64], steps: int) -> Tensor:
        """`steps` positions from `positions` int64 [n] on, int64 [n, steps]."""
        return torch.from_numpy(positions[:, None] + np.arange(steps)).to(self._device)

    def _rotation(self, times: Tensor) -> Tensor:
        """Rotary embedding of positions `times` int64 [n, T] as complex numbers, complex64 [n * T, 1, 1, dim / 2].

        Computed once per step for all layers; a table of all positions would grow with the longest stream.
        """
        angles = self._frequencies * times.float().view(-1, 1, 1, 1)
        return torch.polar(torch.ones_like(angles), angles)
