"""The whole model: one batched step for one frame each of any subset of independent streams."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.checkpoint import Checkpoint
from serve_app.model.codec import Codec
from serve_app.model.decoder import PREFILL_POSITIONS, Decoder
from serve_app.model.rows import Rows
from serve_app.model.step_threads import StepThreads
from serve_app.speech import FRAME_SAMPLES, History, ModelInfo

if TYPE_CHECKING:  # needs Triton, which only a GPU does
    from serve_app.model.graphs import GraphedSteps


class StepResult(NamedTuple):
    """What one step says about each row, in the order of the slots given; all on the CPU."""

    tokens: NDArray[np.int32]
    """Text tokens, int32 [n]."""
    codes: NDArray[np.int16]
    """Audio codes, int16 [n, codebooks]."""
    pauses: NDArray[np.float32]
    """Pause probabilities, float32 [n, heads]; [n, 0] where the checkpoint has no pause heads."""
    probabilities: NDArray[np.float32]
    """Probability of each token, float32 [n]."""


class SpeechModel:
    """Codec and decoder with state for `slots` streams, used by a single thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int,
        *,
        kv_cache_dtype: Literal["auto", "fp8"] = "auto",
        graphs: bool | None = None,
    ) -> None:
        """Allocate the caches of `slots` streams on the checkpoint's device, all of them new streams.

        `kv_cache_dtype` is how the decoder keeps keys and values: in the dtype of its weights, or as 8-bit floats. With
        `graphs` steps are those that CUDA graphs record (`GraphedSteps`), which is the default on a GPU.
        """
        if slots < 1:
            raise ValueError(f"expected at least 1 slot, got {slots}")
        graphs = checkpoint.device.type == "cuda" if graphs is None else graphs
        self._info = checkpoint.info
        self._slots = slots
        self._device = checkpoint.device
        self._cards = checkpoint.card, checkpoint.text_card
        self._threads = StepThreads(checkpoint.lm.transformer)
        allocated = slots + 1 if graphs else slots  # graphs need a slot for rows that are only there to fill a step
        self._codec = Codec(checkpoint.mimi, checkpoint.info.codebooks, allocated)
        self._decoder = Decoder(checkpoint.lm, allocated, eight_bit=kv_cache_dtype == "fp8")
        self._graphs: GraphedSteps | None = None
        if graphs:
            from serve_app.model import graphs as module  # needs Triton, which is not everywhere

            self._graphs = module.GraphedSteps(self._codec, self._decoder, slots, checkpoint.device)

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._info

    @property
    def slots(self) -> int:
        """How many streams the caches hold."""
        return self._slots

    @property
    def bytes_per_slot(self) -> int:
        """Memory on the device that each slot takes."""
        slots = len(self._decoder.rings.positions)  # one more than streams use, where there are graphs
        return (self._codec.state_bytes + self._decoder.state_bytes) // slots

    @torch.inference_mode()
    def reset(self, slots: NDArray[np.int64]) -> None:
        """Make `slots` int64 [n] new streams. Raises ValueError for slots out of range or given twice."""
        slots = self._ascending(slots)[0]
        if len(slots):
            self._codec.reset(slots)
            self._decoder.reset(slots)

    @torch.inference_mode()
    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> StepResult:
        """One frame for each of `slots`, int64 [n] distinct; `frames` float32 [n, FRAME_SAMPLES] at 24 kHz.

        Raises ValueError for slots out of range or given twice and for frames of another shape.
        """
        if frames.shape != (len(slots), FRAME_SAMPLES):
            raise ValueError(f"expected frames [{len(slots)}, {FRAME_SAMPLES}], got {list(frames.shape)}")
        ascending, order = self._ascending(slots)
        if not len(ascending):
            return self._empty()
        frames = frames if order is None else frames[order]
        if self._graphs is not None:
            result = StepResult(*self._graphs.step(ascending, frames))
        else:
            with self._threads.chosen(len(ascending)):
                rows = Rows(ascending, self._device)
                codes = self._codec.step(rows, self._upload(frames))
                tokens, pauses, probabilities = self._decoder.step(rows, codes)
            result = StepResult(
                tokens.to(torch.int32).cpu().numpy(),
                codes.to(torch.int16).cpu().numpy(),
                pauses.cpu().numpy(),
                probabilities.cpu().numpy(),
            )
        if order is None:
            return result
        back = np.argsort(order)
        return StepResult(result.tokens[back], result.codes[back], result.pauses[back], result.probabilities[back])

    def prefill(self, slots: Sequence[int], histories: Sequence[History]) -> Iterator[None]:
        """Re-create streams from their histories; yields between bounded pieces of work.

        The caller may step *other* slots between the pieces, and must run the iterator to its end (or reset the slots)
        before it uses these. The codec hears the histories' audio one frame per call, as it would live, and all
        sessions that still have audio at that point in one batch; then each decoder runs over its tokens and codes.
        Raises ValueError for slots as `step` does, and for histories whose arrays do not fit together.
        """
        numbers = np.asarray(slots, np.int64)
        if len(numbers) != len(histories):
            raise ValueError(f"expected a history for each slot, got {len(numbers)} slots, {len(histories)} histories")
        self._ascending(numbers)
        for history in histories:
            self._check(history)
        return self._prefill(numbers, histories)

    @torch.inference_mode()
    def pretend_full(self, slots: NDArray[np.int64]) -> None:
        """Make the caches of `slots` int64 [n] look full, so that steps take as long as they ever will.

        To measure with; reset the slots before streams use them.
        """
        self._codec.pretend_full(slots)
        self._decoder.pretend_full(slots)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run dummy steps of growing widths, or record the graphs, so that a first live step is not a slow one.

        Leaves all slots reset.
        """
        every = np.arange(self._slots)
        self.reset(every)
        if self._graphs is not None:
            self._graphs.record()
            return
        widths = sorted({min(2**power, self._slots) for power in range(self._slots.bit_length() + 1)})
        for width in widths:
            for _ in range(2):
                self.step(every[:width], np.zeros((width, FRAME_SAMPLES), np.float32))
        self.reset(every)

    def _prefill(self, slots: NDArray[np.int64], histories: Sequence[History]) -> Iterator[None]:
        self.reset(slots)
        lengths = np.array([len(history.audio) for history in histories])
        for left in range(max(lengths, default=0), 0, -1):
            moving = np.flatnonzero(lengths >= left)
            moving = moving[np.argsort(slots[moving])]
            self._hear(slots[moving], np.stack([histories[one].audio[-left] for one in moving]))
            yield
        for slot, history in zip(slots, histories, strict=True):
            pieces = self._decoder.prefill(int(slot), history)
            while self._has_run(pieces):
                yield

    def _has_run(self, pieces: Iterator[None]) -> bool:
        """Run the next piece of a prefill; whether there was one."""
        with self._threads.chosen(PREFILL_POSITIONS):
            return next(pieces, False) is None

    @torch.inference_mode()
    def _hear(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> None:
        uploaded = self._upload(frames)
        if self._graphs is not None:
            self._graphs.hear(slots, uploaded)
        else:
            with self._threads.chosen(len(slots)):
                self._codec.advance(Rows(slots, self._device), uploaded)

    def _upload(self, frames: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames, np.float32)).to(self._device)

    def _empty(self) -> StepResult:
        codes = np.zeros((0, self._info.codebooks), np.int16)
        pauses = np.zeros((0, self._decoder.heads), np.float32)
        return StepResult(np.zeros(0, np.int32), codes, pauses, np.zeros(0, np.float32))

    def _ascending(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """The slots checked and in ascending order, and the order that made them so (None where they were)."""
        if slots.ndim != 1 or slots.dtype != np.int64:
            raise ValueError(f"expected slots int64 [n], got {slots.dtype} {list(slots.shape)}")
        order = None
        if len(slots) > 1 and not (slots[1:] > slots[:-1]).all():
            order = np.argsort(slots)
            slots = slots[order]
            if not (slots[1:] > slots[:-1]).all():
                twice = slots[1:][slots[1:] == slots[:-1]][0]
                raise ValueError(f"expected distinct slots, got slot {twice} twice")
        if len(slots) and not (slots[0] >= 0 and slots[-1] < self._slots):
            wrong = slots[0] if slots[0] < 0 else slots[-1]
            raise ValueError(f"expected slots from 0 to {self._slots - 1}, got {wrong}")
        return slots, order

    def _check(self, history: History) -> None:
        tokens, codes, audio = history.tokens, history.codes, history.audio
        kept, codebooks = len(tokens), self._info.codebooks
        if tokens.ndim != 1 or codes.shape != (kept, codebooks):
            raise ValueError(
                f"expected tokens [n] and codes [n, {codebooks}], got {list(tokens.shape)} and {list(codes.shape)}"
            )
        if audio.ndim != 2 or audio.shape[1] != FRAME_SAMPLES:
            raise ValueError(f"expected audio [m, {FRAME_SAMPLES}], got {list(audio.shape)}")
        if max(kept, len(audio)) > history.next_frame:
            raise ValueError(
                f"expected at most {history.next_frame} frames of history, got {kept} tokens, {len(audio)} of audio"
            )
        for name, values, limit in (("codes", codes, self._cards[0]), ("tokens", tokens, self._cards[1])):
            if kept and not (values.min() >= 0 and values.max() < limit):
                raise ValueError(f"expected {name} from 0 to {limit - 1}, got {values.min()} to {values.max()}")
