"""Whether both sides say the same: token by token, while they are measured."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from loadtest.engine.sides import Said, Upstream

NEAR_TIE = {torch.float32: 1e-4, torch.bfloat16: 2**-5}
"""Logits that differ by less than this share of the best one are a near tie: in sums of other orders (another batch
size) either may win. In bfloat16, a few units in the last place."""


@dataclass
class Agreement:
    """Counts of what was compared."""

    tokens: int = 0
    different: int = 0
    """Tokens that differ, near ties left out."""
    near_ties: int = 0
    codes_different: int = 0
    """Frames of which a code differs."""

    @property
    def equal(self) -> bool:
        """Whether every token was the same, near ties left out."""
        return not self.different

    def add(self, other: "Agreement") -> None:
        """Count what another one has counted, too."""
        self.tokens += other.tokens
        self.different += other.different
        self.near_ties += other.near_ties
        self.codes_different += other.codes_different


def compare(
    upstream: Upstream, slots: NDArray[np.int64], theirs: Said, ours: Said, tie: float, agreement: Agreement
) -> None:
    """Count moshi's last step for `slots` against what our model said on the same frames.

    Where they differ, moshi goes on with our token, so that one difference is not counted again and again.
    """
    agreement.tokens += len(slots)
    agreement.codes_different += int((theirs.codes != ours.codes).any(1).sum())
    differ = theirs.tokens != ours.tokens
    if differ.any():
        shortfall = upstream.shortfall(slots[differ], ours.tokens[differ])
        agreement.near_ties += int((shortfall <= tie).sum())
        agreement.different += int((shortfall > tie).sum())
        upstream.follow(slots[differ], ours.tokens[differ])
