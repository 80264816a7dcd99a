"""Plays streams through a model as a service would: any slots, in any order, at any age."""

from collections.abc import Sequence

import numpy as np
from moshi_reference import Case

from serve_app.model import SpeechModel
from serve_app.speech import History


class Player:
    """Plays streams of a reference through a model, and checks every result against it."""

    def __init__(self, case: Case, model: SpeechModel) -> None:
        self.case, self.reference, self.model = case, case.reference, model
        self.frames = self.reference.tokens.shape[1]
        self.streams = len(self.reference.tokens)
        self.playing: dict[int, tuple[int, int]] = {}  # slot -> (stream, next frame)

    def start(self, slot: int, stream: int) -> None:
        self.model.reset(np.array([slot]))
        self.playing[slot] = (stream, 0)

    def ready(self, slots: Sequence[int]) -> list[int]:
        return [slot for slot in slots if slot in self.playing and self.playing[slot][1] < self.frames]

    def step(self, slots: Sequence[int]) -> None:
        slots = self.ready(slots)
        streams, frames = (np.array([self.playing[slot][i] for slot in slots], np.int64) for i in (0, 1))
        result = self.model.step(np.array(slots, np.int64), self.reference.audio[streams, frames])
        np.testing.assert_array_equal(result.codes, self.reference.codes[streams, frames], f"codes at {frames}")
        np.testing.assert_array_equal(result.tokens, self.reference.tokens[streams, frames], f"tokens at {frames}")
        np.testing.assert_allclose(result.pauses, self.reference.pauses[streams, frames], atol=1e-5)
        assert ((result.probabilities > 0) & (result.probabilities <= 1)).all()
        for slot, stream, frame in zip(slots, streams, frames, strict=True):
            self.playing[slot] = (int(stream), int(frame) + 1)

    def history(self, slot: int, kept: int | None = None, heard: int | None = None) -> History:
        """What the ingress would hold of the stream in this slot; complete, or the last frames."""
        stream, frame = self.playing[slot]
        kept, heard = (frame if n is None else min(n, frame) for n in (kept, heard))
        return History(
            frame,
            self.reference.tokens[stream, frame - kept : frame].astype(np.int32),
            self.reference.codes[stream, frame - kept : frame].astype(np.int16),
            self.reference.audio[stream, frame - heard : frame],
        )

    def move(self, moves: dict[int, int], stepping: Sequence[int] = (), **kept: int) -> None:
        """Move streams to other slots, stepping others between the pieces of work."""
        histories = [self.history(slot, **kept) for slot in moves]
        moved = [self.playing.pop(slot) for slot in moves]
        for slot in moves.values():
            self.playing.pop(slot, None)
        for _ in self.model.prefill(list(moves.values()), histories):
            self.step([slot for slot in stepping if slot not in moves.values()])
        self.playing.update(zip(moves.values(), moved, strict=True))
