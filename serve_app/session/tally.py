"""What a session's summary says: one line in the log at its end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KEPT_DELAYS = 512
"""Latest words whose delays are summed up."""


@dataclass
class Tally:
    """A session's numbers so far; they travel with it."""

    words: int = 0
    moves: int = 0
    resumes: int = 0
    first_token_s: float | None = None
    """From the first audio to the first text; None while there was none."""

    def summary(self, word_delays_s: Sequence[float]) -> dict[str, int | float | None]:
        """The numbers by name, as they are logged."""
        return {
            "words": self.words,
            "first_token_seconds": None if self.first_token_s is None else round(self.first_token_s, 3),
            "word_delay_p95_seconds": round(float(np.percentile(word_delays_s, 95)), 3) if word_delays_s else None,
            "moves": self.moves,
            "resumes": self.resumes,
        }
