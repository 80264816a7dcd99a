"""Keys and values of a transformer's rings, in the type of the weights or as 8-bit floats.

8-bit values are e4m3 floats with one float32 scale for each position of each head, so that a head's largest element
becomes the largest number there is.
"""

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""448, the largest e4m3 number."""


class RingCache:
    """Rings of one transformer: for every layer and slot the keys and values of the last `context` positions."""

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor, eight_bit: bool = False) -> None:
        """Empty rings of `shape` (layers, slots, heads, context, dim) on the device of `like`, and in its dtype.

        With `eight_bit` each element takes 8 bits instead.
        """
        layers, slots, heads, self._context, self._dim = shape
        self._rings = 2 * heads
        self._dtype = like.dtype
        # One head's keys (and its values) of one slot lie together, as attention reads them.
        places = (layers, slots, 2, heads, self._context)
        self.values = torch.zeros(
            *places, self._dim, device=like.device, dtype=torch.float8_e4m3fn if eight_bit else like.dtype
        )
        """[layers, slots, 2, heads, context, dim]: keys, then values."""
        self.scales = torch.zeros(places, device=like.device) if eight_bit else None
        """What 8-bit values are to be multiplied by, float32 [layers, slots, 2, heads, context]; else None."""

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where `write` puts new positions int64 [n, T] of `slots` int64 [n]; int64 [n * T * 2 * heads]."""
        rings = slots[:, None] * self._rings + torch.arange(self._rings, device=slots.device)
        return (rings[:, None] * self._context + (positions % self._context)[..., None]).flatten()

    @property
    def nbytes(self) -> int:
        """Memory of all rings."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def clear(self, slots: Tensor) -> None:
        """Write zeros everywhere in the rings of `slots` int64 [n]."""
        values = self.values if self.scales is None else self.values.view(torch.uint8)
        values[:, slots] = 0

    def start(self, slots: Tensor, first: Tensor) -> None:
        """Put keys and values `first` [layers, 2, heads, dim] at position 0 of `slots` int64 [n]."""
        if self.scales is None:
            self.values[:, slots, :, :, 0] = first[:, None]
            return
        small, scales = quantise(first)
        self.values.view(torch.uint8)[:, slots, :, :, 0] = small.view(torch.uint8)[:, None]
        self.scales[:, slots, :, :, 0] = scales[:, None]

    def write(self, layer: int, places: Tensor, new: Tensor) -> None:
        """Put keys and values `new` [n * T, 2, heads, dim] into a layer's rings."""
        values = self.values[layer].view(-1, self._dim)
        if self.scales is None:
            values.index_copy_(0, places, new.reshape(-1, self._dim))
            return
        small, scales = quantise(new.reshape(-1, self._dim))
        values.view(torch.uint8).index_copy_(0, places, small.view(torch.uint8))  # torch copies no e4m3 rows
        self.scales[layer].view(-1).index_copy_(0, places, scales)

    def layer(self, number: int) -> Tensor:
        """A layer's rings [slots, 2, heads, context, dim] in the dtype of the weights; a copy where they are 8-bit."""
        values = self.values[number]
        return values if self.scales is None else dequantise(values, self.scales[number], self._dtype)

    def read(self, layer: int, slot: int, ring: Tensor) -> Tensor:
        """Keys and values [2, heads, n, dim] of a layer and slot at `ring` int64 [n], in the dtype of the weights."""
        values = self.values[layer, slot]
        if self.scales is None:
            return values.index_select(2, ring)
        small = values.view(torch.uint8).index_select(2, ring).view(values.dtype)
        return dequantise(small, self.scales[layer, slot].index_select(2, ring), self._dtype)

    def rounded(self, new: Tensor) -> Tensor:
        """What `read` will give of `new` [..., dim] once it is written."""
        return new if self.scales is None else dequantise(*quantise(new), self._dtype)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [..., dim] as e4m3 floats of the same shape, and their scales float32 [...]."""
    wide = x.float()
    scales = (wide.abs().amax(-1) / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    return (wide / scales[..., None]).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def dequantise(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `quantise`, but for its rounding."""
    return (values.float() * scales[..., None]).to(dtype)
