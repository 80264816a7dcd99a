"""Rounds in turns: a few frames of every stream through one side, then the same frames through the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.engine.clock import measure
from loadtest.engine.comparing import NEAR_TIE, Agreement, compare
from loadtest.engine.loads import DEFAULT_MAX_WAIT_S, Load, Timeline
from loadtest.engine.sides import Ours, Said, Side, Upstream
from loadtest.engine.stages import STAGES
from serve_app.model import Checkpoint
from serve_app.samples import load_clips
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS, History

ROUND_FRAMES = 5
"""Frames of each stream that one side takes before it is the other's turn: noise on the machine meets both."""

LEAD_FRAMES = 3
"""Frames that our model is ahead, so that whatever moshi is given, ours has already said something to it."""

AGES = ("early", "full")
"""Sessions that have just begun, and sessions so long that every cache is full."""


@dataclass(frozen=True)
class Effort:
    """How long to measure one load."""

    audio_s: float
    """Audio of each stream."""
    most_s: float
    """No new round after so many seconds, whatever was measured until then."""
    max_wait_s: float = DEFAULT_MAX_WAIT_S
    """How long a frame may wait for others, the setting `engine.max_wait_seconds`."""


@dataclass
class Tally:
    """What one side's steps cost."""

    steps_s: list[float] = field(default_factory=list)
    compute_s: float = 0.0
    audio_s: float = 0.0
    waits_and_steps_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*STAGES, "rest")})
    """By stage, of steps of their own: to tell the stages apart costs time."""

    @property
    def compute_ms_per_audio_s(self) -> float:
        """Compute time in milliseconds per second of audio."""
        return 1e3 * self.compute_s / self.audio_s


@dataclass(frozen=True)
class Measured:
    """Both sides under one load."""

    streams: int
    age: str
    load: str
    ours: Tally
    moshi: Tally | None
    agreement: Agreement

    @property
    def ratio(self) -> float | None:
        """How many times more compute moshi's stepping takes."""
        return self.moshi.compute_ms_per_audio_s / self.ours.compute_ms_per_audio_s if self.moshi else None


class Audio:
    """Frames of the sample clips, from another start for each slot."""

    def __init__(self) -> None:
        samples = np.concatenate([clip.samples for clip in load_clips()])
        self._frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)

    def of(self, slots: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.float32]:
        """Frame `frames[i]` of slot `slots[i]`, float32 [n, FRAME_SAMPLES]."""
        return self._frames[(slots * 37 + frames) % len(self._frames)]


def full_histories(checkpoint: Checkpoint, slots: int, audio: Audio) -> list[History]:
    """A different history for each slot that fills every cache."""
    info, rng = checkpoint.info, np.random.default_rng(slots)
    frames = info.context_frames - 1  # moshi's first step takes one position, too
    heard = np.arange(min(info.codec_context_frames, frames))
    return [
        History(
            frames,
            rng.integers(0, checkpoint.text_card, frames, dtype=np.int32),
            rng.integers(0, checkpoint.card, (frames, info.codebooks), dtype=np.int16),
            audio.of(np.full_like(heard, slot), heard),
        )
        for slot in range(slots)
    ]


class Contest:
    """Our model and moshi's stepping (or ours alone) with the same number of slots."""

    def __init__(self, checkpoint: Checkpoint, audio: Audio, ours: Ours, upstream: Upstream | None) -> None:
        self._device = checkpoint.device
        self._tie = NEAR_TIE[checkpoint.lm.text_emb.weight.dtype]
        self._audio = audio
        self._ours, self._upstream = ours, upstream
        self._slots = ours.model.slots
        self._said: dict[tuple[int, int], tuple[int, NDArray[np.int64]]] = {}

    def measure(self, load: Load, age: str, effort: Effort) -> Measured:
        """Measure both sides; all slots must be at the same frames on both."""
        sides: list[Side] = [self._ours, *([self._upstream] if self._upstream else [])]
        timelines, tallies, agreement = (
            [Timeline(load, self._slots, effort.max_wait_s) for _ in sides],
            [Tally() for _ in sides],
            Agreement(),
        )
        # The first steps of a kind are slow.
        played = self._play(0, sides, timelines, [Tally() for _ in sides], agreement)
        started_at = time.monotonic()
        for _ in range(max(1, round(effort.audio_s / FRAME_SECONDS / ROUND_FRAMES))):
            played = self._play(played, sides, timelines, tallies, agreement)
            if load.name == "aligned":
                played = self._split(played, sides, timelines, tallies, agreement)
            if time.monotonic() - started_at > effort.most_s:
                break
        self._catch_up(agreement)
        return Measured(self._slots, age, load.name, tallies[0], tallies[1] if self._upstream else None, agreement)

    def _split(
        self,
        played: int,
        sides: Sequence[Side],
        timelines: Sequence[Timeline],
        tallies: Sequence[Tally],
        agreement: Agreement,
    ) -> int:
        """A round that tells the stages apart; nothing else of it counts."""
        for side in sides:
            side.stages.on = True
        stages = [Tally(stages_s=tally.stages_s) for tally in tallies]
        played = self._play(played, sides, timelines, stages, agreement)
        for side in sides:
            side.stages.on = False
        return played

    def _play(
        self,
        played: int,
        sides: Sequence[Side],
        timelines: Sequence[Timeline],
        tallies: Sequence[Tally],
        agreement: Agreement,
    ) -> int:
        """A round for each side; returns how many frames of each stream have been played then."""
        until = played + ROUND_FRAMES
        for side, timeline, tally in zip(sides, timelines, tallies, strict=True):

            def step(
                slots: NDArray[np.int64], frames: NDArray[np.int64], side: Side = side, tally: Tally = tally
            ) -> float:
                said, took = self._step(side, slots, frames, tally)
                self._note(side, slots, frames, said, agreement)
                return took

            timeline.waits_and_steps_s.clear()
            timeline.run(until + LEAD_FRAMES if side is self._ours else until, step)
            tally.waits_and_steps_s += timeline.waits_and_steps_s
        return until

    def _catch_up(self, agreement: Agreement) -> None:
        """Moshi takes what only ours has had, so that both are at the same frames again."""
        while self._said and self._upstream:
            next_frames = dict(sorted(self._said, reverse=True))  # of each slot the earliest stays
            slots = np.array(sorted(next_frames))
            frames = np.array([next_frames[slot] for slot in slots.tolist()])
            said = self._upstream.step(slots, self._audio.of(slots, frames))
            self._note(self._upstream, slots, frames, said, agreement)

    def _step(
        self, side: Side, slots: NDArray[np.int64], frames: NDArray[np.int64], tally: Tally
    ) -> tuple[Said, float]:
        audio = self._audio.of(slots, frames)
        side.stages.take()
        said, cost = measure(self._device, lambda: side.step(slots, audio))
        tally.steps_s.append(cost.step_s)
        tally.compute_s += cost.compute_s
        tally.audio_s += len(slots) * FRAME_SECONDS
        if side.stages.on:
            spent = side.stages.take()
            for name, seconds in {**spent, "rest": cost.step_s - sum(spent.values())}.items():
                tally.stages_s[name].append(seconds)
        return said, cost.step_s

    def _note(
        self, side: Side, slots: NDArray[np.int64], frames: NDArray[np.int64], said: Said, agreement: Agreement
    ) -> None:
        """Keep what ours said, for moshi to be compared with."""
        places = list(zip(slots.tolist(), frames.tolist(), strict=True))
        if side is self._ours:
            if self._upstream:
                self._said.update(zip(places, zip(said.tokens.tolist(), said.codes, strict=True), strict=True))
            return
        ours = [self._said.pop(place) for place in places]
        expected = Said(np.array([token for token, _ in ours]), np.stack([codes for _, codes in ours]))
        compare(self._upstream, slots, said, expected, self._tie, agreement)
