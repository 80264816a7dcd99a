"""The two that are compared: our model, and moshi's own modules stepped as upstream's batched server steps them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from moshi.models import LMGen
from moshi.utils.compile import no_compile
from numpy.typing import NDArray
from torch import Tensor

from loadtest.engine.stages import Stages
from serve_app.model import Checkpoint, SpeechModel
from serve_app.model.step_threads import StepThreads
from serve_app.speech import FRAME_SAMPLES, History

PREFILL_POSITIONS = 16
"""Positions that moshi's language model takes at once while its caches are filled: bounds the memory for it."""


class Said(NamedTuple):
    """What a step said, in the order of the slots given."""

    tokens: NDArray[np.int64]
    codes: NDArray[np.int64]


class Side(Protocol):
    """One way to step many streams."""

    stages: Stages

    def restart(self) -> None:
        """Make all slots new streams."""

    def fill(self, histories: Sequence[History]) -> None:
        """Make all slots streams with these histories, which start at frame 0."""

    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> Said:
        """One frame, float32 [n, FRAME_SAMPLES], for each of `slots`, int64 [n]."""


class Ours:
    """`SpeechModel`, as the engine uses it."""

    def __init__(self, checkpoint: Checkpoint, slots: int) -> None:
        self.stages = Stages(checkpoint.device)
        self.model = SpeechModel(checkpoint, slots)
        for name in ("codec", "decoder"):
            part = getattr(self.model, f"_{name}")
            part.step = self.stages.watch(name, part.step)
        self.model.warm_up()

    def restart(self) -> None:
        """Make all slots new streams."""
        self.model.reset(np.arange(self.model.slots))

    def fill(self, histories: Sequence[History]) -> None:
        """Make all slots streams with these histories."""
        for _ in self.model.prefill(range(self.model.slots), histories):
            pass

    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> Said:
        """One frame for each of `slots`."""
        result = self.model.step(slots, frames)
        return Said(result.tokens.astype(np.int64), result.codes.astype(np.int64))


class Upstream:
    """moshi's streaming `MimiModel` and `LMGen`: every step runs all slots, `exec_mask` says whose state advances.

    Its modules are those of the checkpoint that our model uses, so both have the same weights.
    """

    def __init__(self, checkpoint: Checkpoint, slots: int) -> None:
        self.stages = Stages(checkpoint.device)
        self._slots, self._device = slots, checkpoint.device
        self._mimi, self._lm = checkpoint.mimi, checkpoint.lm
        self._threads = StepThreads(checkpoint.lm.transformer)  # as many as ours: it is not threads that are compared
        self._logits = torch.zeros(0)
        self._generator: Any = LMGen(
            self._lm, use_sampling=False, temp=0, temp_text=0, support_out_of_sync=True,
            on_text_logits_hook=self._keep_logits,
        )  # fmt: skip
        self._streaming = ExitStack()
        with torch.no_grad():
            self._streaming.enter_context(self._mimi.streaming(slots))
            self._streaming.enter_context(self._generator.streaming(slots))
        self._encode = self.stages.watch("codec", self._mimi.encode)
        self._decode = self.stages.watch("decoder", self._generator.step_with_extra_heads)
        self.restart()

    def close(self) -> None:
        """Let go of the streaming state, so that the modules can be used with another number of slots."""
        self._streaming.close()

    @torch.no_grad()
    def restart(self) -> None:
        """Make all slots new streams: moshi's first step, which sees only initial tokens, done."""
        self._reset()
        codes = torch.zeros(self._slots, self._lm.n_q, 1, dtype=torch.long, device=self._device)
        with self._uncompiled():
            self._generator.step_with_extra_heads(codes)

    @torch.no_grad()
    def fill(self, histories: Sequence[History]) -> None:
        """Make all slots streams with these histories: the codec hears their audio, the language model reads them."""
        self._reset()
        audio = self._tensor([history.audio for history in histories])
        codes = self._tensor([history.codes for history in histories]).long().transpose(1, 2)
        tokens = self._tensor([history.tokens for history in histories]).long()
        initial = self._lm._get_initial_token().expand(self._slots, -1, 1)
        with self._uncompiled():
            for frame in range(audio.shape[1]):
                self._mimi.encode(audio[:, frame, None])
            first = self._lm.forward_text(initial)[1][:, 0, 0].argmax(-1)
            before = torch.cat([first[:, None], tokens[:, :-1]], 1)
            for piece in torch.split(torch.cat([before[:, None], codes], 1), PREFILL_POSITIONS, -1):
                self._lm.forward_text(piece)
        state = self._generator._streaming_state
        state.offsets.fill_(tokens.shape[1] + 1)
        self._say(np.arange(self._slots), tokens[:, -1])

    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> Said:
        """One frame for each of `slots`."""
        with torch.no_grad(), self._uncompiled(), self._threads.chosen(self._slots):
            mask = torch.zeros(self._slots, dtype=torch.bool)
            mask[torch.from_numpy(slots)] = True
            audio = np.zeros((self._slots, 1, FRAME_SAMPLES), np.float32)
            audio[slots, 0] = frames
            mask = mask.to(self._device)
            self._mimi.set_exec_mask(mask)
            self._generator.set_exec_mask(mask)
            codes = self._encode(torch.from_numpy(audio).to(self._device))
            out, heads = self._decode(codes)
            tokens = out[:, 0, 0].cpu().numpy()
            for head in heads:
                head.cpu()
            return Said(tokens[slots], codes[:, :, 0].cpu().numpy()[slots])

    def shortfall(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """How far the last step's logits of these tokens are below the best ones, relative to those; float32 [n]."""
        logits = self._logits[:, 0, 0].float().cpu()[torch.from_numpy(slots)]
        best = logits.max(-1).values
        given = logits.gather(-1, torch.from_numpy(tokens)[:, None])[:, 0]
        return ((best - given) / best.abs().clamp(min=1e-6)).numpy()

    def follow(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Let these slots go on as if the last step had said these tokens."""
        self._say(slots, torch.from_numpy(tokens).to(self._device))

    def _reset(self) -> None:
        every = torch.ones(self._slots, dtype=torch.bool, device=self._device)
        self._mimi.reset_streaming(every)
        self._generator.reset_streaming(every)

    def _uncompiled(self) -> AbstractContextManager[None]:
        """As upstream: on a CPU moshi compiles but a few small functions, and that takes 20 s."""
        return no_compile() if self._device.type == "cpu" else nullcontext()

    @torch.no_grad()
    def _say(self, slots: NDArray[np.int64], tokens: Tensor) -> None:
        state = self._generator._streaming_state
        rows = torch.from_numpy(slots).to(self._device)
        state.cache[rows, 0, state.offsets[rows] % state.cache.shape[-1]] = tokens

    def _keep_logits(self, logits: Tensor) -> None:
        self._logits = logits

    def _tensor(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self._device)
