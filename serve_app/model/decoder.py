"""A slot-indexed greedy text decoder over the weights of moshi's `LMModel`.

moshi's first step (`LMGen`) sees only initial tokens, whatever it is given, so it is the same for every stream: it is
computed once and written into a slot on reset. Frame i of a stream is then position i + 1, and one frame is one step.
Its tokens are those of `moshi.run_inference`, which feeds the first frame's codes twice, with greedy sampling.
"""

from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.product import Product
from serve_app.model.rows import Rows
from serve_app.model.transformer import RingTransformer, norm_function
from serve_app.speech import History

if TYPE_CHECKING:  # needs Triton, which only a GPU does
    from serve_app.model.static_rows import StaticRows

PREFILL_POSITIONS = 128
"""Most positions that one piece of a prefill runs: enough to keep a device busy, few enough not to delay live steps."""


class Decoder:
    """State of the language model for many slots."""

    def __init__(self, lm: Any, slots: int, eight_bit: bool = False) -> None:
        """Take the weights of a moshi `LMModel` without depformer, delays and conditioners.

        Its embeddings (and its output layers) move into one table each, of which the model's own become views. With
        `eight_bit` it keeps keys and values as 8-bit floats.
        """
        self._device = lm.text_emb.weight.device
        self._codebooks = int(lm.n_q)
        self._embedding = _join([emb.weight for emb in (*lm.emb, lm.text_emb)])
        offsets = [index * (lm.card + 1) for index in range(self._codebooks + 1)]
        self._offsets = torch.tensor(offsets, device=self._device)
        self._transformer = RingTransformer(lm.transformer, slots, eight_bit)
        self._out_norm = norm_function(lm.out_norm)
        self._out = Product(_join([lm.text_linear.weight, *(head.weight for head in lm.extra_heads)]))
        self._text_bias = lm.text_linear.bias
        self._text_cardinality = int(lm.text_linear.weight.shape[0])
        self.heads = len(lm.extra_heads)
        """Number of pause heads."""
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            initial = torch.tensor([[lm.card] * self._codebooks + [lm.text_card]], device=self._device)
            self._first, out = self._transformer.first_position(self._embed(initial))
            self._first_token = int(self._read(out)[0])
            self.reset(np.arange(slots))

    @property
    def state_bytes(self) -> int:
        """Memory of all slots' state."""
        return self._tokens.nbytes + self._transformer.state_bytes

    @property
    def rings(self) -> RingTransformer:
        """The decoder's transformer, which knows where each slot's stream is."""
        return self._transformer

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Make `slots` int64 [n] new streams: moshi's first step done, frame 0 to come."""
        self._transformer.start(slots, self._first)
        self._tokens.index_fill_(0, torch.from_numpy(slots).to(self._device), self._first_token)

    def pretend_full(self, slots: NDArray[np.int64]) -> None:
        """See `SpeechModel.pretend_full`."""
        self._transformer.pretend_full(slots)

    def step(self, rows: "Rows | StaticRows", codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens int64 [n], pause probabilities float32 [n, heads] and the tokens' own probabilities float32 [n].

        `codes` are those of one frame, int64 [n, codebooks].
        """
        inputs = torch.cat([codes, rows.take(self._tokens)[:, None]], 1)
        out = self._transformer.step(self._embed(inputs)[:, None], rows)[:, 0]
        tokens, pauses, probabilities = self._read(out)
        self._tokens.index_copy_(0, rows.index, tokens)
        return tokens, pauses, probabilities

    def prefill(self, slot: int, history: History) -> Iterator[None]:
        """Re-create a stream in `slot` from its tokens and codes, in pieces of at most PREFILL_POSITIONS positions.

        Where the history does not reach back to frame 0, its first frame only tells the token before the second one.
        An empty history makes a new stream.
        """
        tokens = torch.from_numpy(history.tokens.astype(np.int64)).to(self._device)
        codes = torch.from_numpy(history.codes.astype(np.int64)).to(self._device)
        self.reset(np.array([slot]))
        if not len(tokens):
            return
        before = tokens[:-1]
        if len(tokens) == history.next_frame:
            before = torch.cat([tokens.new_tensor([self._first_token]), before])
        else:
            codes = codes[1:]
            self._transformer.reset(np.array([slot]), history.next_frame - len(tokens) + 2)
        inputs = torch.cat([codes, before[:, None]], 1)
        for piece in torch.split(inputs, PREFILL_POSITIONS):
            if len(piece):
                self._extend(slot, piece)
                yield
        self._tokens[slot] = tokens[-1]

    @torch.inference_mode()
    def _extend(self, slot: int, inputs: Tensor) -> None:
        self._transformer.extend(self._embed(inputs), slot)

    def _embed(self, inputs: Tensor) -> Tensor:
        """Sum of the embeddings of codes and token, [n, width], for `inputs` int64 [n, codebooks + 1]."""
        if self._embedding.dtype == torch.float32:
            return F.embedding_bag(inputs + self._offsets, self._embedding, mode="sum")
        # moshi adds one embedding after the other and rounds every sum; a single rounding changes 0.4 % of the demo
        # model's tokens in bfloat16.
        first, *others = F.embedding((inputs + self._offsets).T, self._embedding)
        return reduce(torch.add, others, first)

    def _read(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `step` returns, of the transformer's output [n, width]; tokens are the likeliest ones."""
        logits = self._out(self._out_norm(out)).float()
        text = logits[:, : self._text_cardinality]
        if self._text_bias is not None:
            text = text + self._text_bias
        tokens = text.argmax(-1)
        probabilities = 1 / (text - text.amax(-1, keepdim=True)).exp().sum(-1)
        if not self.heads:
            return tokens, text.new_zeros(len(text), 0), probabilities
        classes = logits[:, self._text_cardinality :].reshape(len(logits), self.heads, -1)
        return tokens, classes.softmax(-1)[..., 0], probabilities


def _join(weights: list[Any]) -> Tensor:
    """One table of all rows; the parameters become views of it, so nothing is held twice."""
    table = torch.cat([weight.detach() for weight in weights])
    for weight, view in zip(weights, torch.split(table, [len(weight) for weight in weights]), strict=True):
        weight.data = view
    return table
