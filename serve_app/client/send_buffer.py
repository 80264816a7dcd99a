"""What a client has sent lately, in case the server asks for it again after a broken connection."""

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.speech import SAMPLE_RATE_HZ

BUFFER_SECONDS = 30.0
"""Audio kept: far more than a connection holds in flight. 2.9 MB."""

Control: TypeAlias = Literal["flush", "end"]


@dataclass(frozen=True)
class _Sent:
    first: int
    """Samples sent before it."""
    flushes: int
    """Flushes sent before it."""
    what: NDArray[np.float32] | Control


class SendBuffer:
    """The latest audio and control messages, in order."""

    def __init__(self, seconds: float = BUFFER_SECONDS) -> None:
        self._capacity = int(seconds * SAMPLE_RATE_HZ)
        self._sent: deque[_Sent] = deque()
        self._samples = 0
        self._flushes = 0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the end was sent."""
        return self._ended

    @property
    def total(self) -> tuple[int, int, bool]:
        """Samples and flushes that were ever sent, and whether the end was."""
        return self._samples, self._flushes, self._ended

    def add(self, what: NDArray[np.float32] | Control) -> None:
        """Remember what is being sent now: samples, float32 [n], or a control message."""
        self._sent.append(_Sent(self._samples, self._flushes, what))
        if isinstance(what, np.ndarray):
            self._samples += len(what)
        elif what == "flush":
            self._flushes += 1
        else:
            self._ended = True
        while len(self._sent) > 1 and self._sent[1].first < self._samples - self._capacity:
            self._sent.popleft()

    def after(self, samples: int, flushes: int, end: bool) -> list[NDArray[np.float32] | Control] | None:
        """What the server lacks, in order, if it has taken so many samples and flushes, and perhaps the end.

        None if that is no longer kept, or more than was ever sent. With the end the server has taken everything, and
        may have made a sample more of it than the client counts: what it resamples comes out whole only then.
        """
        if end:
            return [] if self._ended else None
        if samples > self._samples or flushes > self._flushes:
            return None
        if self._sent and samples < self._sent[0].first:
            return None
        missing: list[NDArray[np.float32] | Control] = []
        for sent in self._sent:
            match sent.what:
                case np.ndarray() as audio:
                    if sent.first + len(audio) > samples:
                        missing.append(audio[max(0, samples - sent.first) :])
                case "flush":
                    if sent.flushes >= flushes:
                        missing.append("flush")
                case "end":
                    missing.append("end")
        return missing
