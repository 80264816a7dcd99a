"""The step loop: frames of many streams in, batched model steps, results out. Knows neither network nor Ray.

A stream holds one slot of the model from `open` to `close`. Its id carries the slot and how often the slot was used
before, so that anything late (a frame after the close, a result of the step in flight) is recognised and dropped.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from serve_app.engine.queues import FrameQueues
from serve_app.engine.step_times import StepTimes
from serve_app.errors import AtCapacity, SpeechError, StepFailed
from serve_app.settings import EngineSettings
from serve_app.speech import FrameResults, History, ModelInfo
from serve_app.telemetry import EngineMetrics, get_logger

SLOT_BITS = 20
"""Low bits of a stream id that hold the slot; the rest counts the slot's uses."""

FAILED_STEPS_LIMIT = 3
"""Steps that may fail in a row before the batcher stops: a broken device fails every step."""

_log = get_logger(__name__)


class StepOutput(Protocol):
    """What a model step returns; see `serve_app.model.model.StepResult`."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Text tokens, int32 [n]."""

    @property
    def codes(self) -> NDArray[np.int16]:
        """Audio codes, int16 [n, codebooks]."""

    @property
    def pauses(self) -> NDArray[np.float32]:
        """Pause probabilities, float32 [n, heads]."""

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probability of each token, float32 [n]."""


class Model(Protocol):
    """What the batcher needs of a model: `serve_app.model.model.SpeechModel` is one."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""

    @property
    def slots(self) -> int:
        """How many streams the caches hold."""

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Make these slots new streams."""

    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> StepOutput:
        """One frame for each of these slots."""

    def prefill(self, slots: Sequence[int], histories: Sequence[History]) -> Iterator[None]:
        """Re-create streams from their histories, in bounded pieces."""


@dataclass(frozen=True)
class Load:
    """How busy the batcher is."""

    slots: int
    slots_used: int
    headroom: float
    """1 - p95 of the step time over the 80 ms of a frame; below 0 streams fall behind."""
    step_p50_seconds: float
    step_p95_seconds: float
    batch_size_mean: float
    steps_total: int
    frames_total: int
    failed_steps_total: int


class Batcher:
    """Owns the model and the thread that steps it.

    `on_results` and `on_failure` are called in that thread and must not block. `open`, `feed` and `close` may be called
    from any thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        on_results: Callable[[FrameResults], None],
        on_failure: Callable[[list[int], SpeechError], None],
        settings: EngineSettings,
        metrics: EngineMetrics | None = None,
    ) -> None:
        """`metrics` count the steps, for whoever wants to know."""
        self._model = model
        self._metrics = metrics or EngineMetrics(CollectorRegistry())
        self._settings = settings
        self._on_results = on_results
        self._on_failure = on_failure
        if model.slots >= 1 << SLOT_BITS:
            raise ValueError(f"expected fewer than {1 << SLOT_BITS} slots, got {model.slots}")

        slots = model.slots
        self._queues = FrameQueues(slots, self._settings.queue_frames)
        self._uses = np.zeros(slots, dtype=np.int64)
        self._open = np.zeros(slots, dtype=bool)
        self._runs = np.zeros(slots, dtype=bool)  # open, and not waiting for a prefill
        self._next_frame = np.zeros(slots, dtype=np.int32)
        self._free = list(range(slots - 1, -1, -1))
        self._to_reset: list[int] = []
        self._to_prefill: dict[int, History] = {}
        self._prefilling: _Prefill | None = None

        self._times = StepTimes()
        self._backlog_limit = slots
        self._failed_in_a_row = {"reset": 0, "step": 0}
        self._failed_steps_total = 0
        self._broken: SpeechError | None = None
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    # ------------------------------------------------------------------ from any thread

    def start(self) -> None:
        """Start the step loop."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the step loop after the step in flight; open streams get no more results.

        Raises TimeoutError if a step does not end within `timeout` seconds.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the step in flight did not end within {timeout} s")

    def open(self, history: History | None = None) -> int:
        """Take a slot for a new stream and return the stream's id.

        With a `history` the stream continues at `history.next_frame`. Raises AtCapacity if no slot is free or the
        headroom is used up, and the error that broke the batcher if it is broken.
        """
        with self._wake:
            if self._broken:
                raise self._broken
            if not self._free:
                raise AtCapacity(f"all {self._model.slots} slots are taken")
            headroom = self._times.headroom(time.monotonic())
            if self._open.any() and headroom < self._settings.min_headroom:
                raise AtCapacity(f"headroom is {headroom:.2f}, below the minimum of {self._settings.min_headroom}")
            slot = self._free.pop()
            self._open[slot] = True
            self._uses[slot] += 1
            self._queues.clear(slot, time.monotonic())
            if history is None:
                self._next_frame[slot] = 0
                self._runs[slot] = True
                self._to_reset.append(slot)
            else:
                self._next_frame[slot] = history.next_frame
                self._to_prefill[slot] = history
                self._wake.notify()
            return self._stream_of(slot)

    def feed(self, stream: int, frames: NDArray[np.float32]) -> bool:
        """Queue frames, float32 [n, FRAME_SAMPLES], of one stream.

        Returns False, queueing nothing, if the slot's queue has no room for them: the sender ignored the window it was
        granted. Frames of a stream that is already closed are dropped.
        """
        with self._wake:
            slot = self._slot_of(stream)
            if slot is None:
                return True
            fits = self._queues.push(slot, frames, time.monotonic())
            self._wake.notify()
            return fits

    def close(self, stream: int) -> None:
        """Give the stream's slot back; at any time, also during a step it takes part in. Idempotent."""
        with self._wake:
            slot = self._slot_of(stream)
            if slot is not None:
                self._release(slot)

    def is_open(self, stream: int) -> bool:
        """Whether the stream still holds its slot."""
        with self._wake:
            return self._slot_of(stream) is not None

    @property
    def broken(self) -> SpeechError | None:
        """The error that stopped the step loop for good, if any."""
        return self._broken

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._model.info

    def load(self) -> Load:
        """How busy the batcher is now."""
        with self._wake:
            now = time.monotonic()
            p50, p95 = self._times.percentiles(now)
            return Load(
                slots=self._model.slots,
                slots_used=int(self._open.sum()),
                headroom=self._times.headroom(now),
                step_p50_seconds=p50,
                step_p95_seconds=p95,
                batch_size_mean=self._times.batch_size_mean(now),
                steps_total=self._times.steps_total,
                frames_total=self._times.frames_total,
                failed_steps_total=self._failed_steps_total,
            )

    # ------------------------------------------------------------------ slots; the lock is held

    def _stream_of(self, slot: int) -> int:
        return int(self._uses[slot]) << SLOT_BITS | slot

    def _slot_of(self, stream: int) -> int | None:
        slot = stream & ((1 << SLOT_BITS) - 1)
        if slot < len(self._open) and self._open[slot] and self._uses[slot] == stream >> SLOT_BITS:
            return slot
        return None

    def _release(self, slot: int) -> None:
        self._open[slot] = False
        self._runs[slot] = False
        self._to_prefill.pop(slot, None)
        if slot in self._to_reset:
            self._to_reset.remove(slot)
        if not (self._prefilling and slot in self._prefilling.slots):  # else it comes free when the prefill is through
            self._free.append(slot)

    # ------------------------------------------------------------------ the step loop's thread

    def _run(self) -> None:
        try:
            self._step_until_stopped()
        except Exception as error:  # whatever it is: an engine that does not step must not look healthy
            _log.error("step loop failed", error=repr(error), exc_info=error)
            self._break(f"the step loop failed: {type(error).__name__}: {error}")

    def _step_until_stopped(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._step(batch)
            if self._prefilling:
                self._advance_prefill(self._prefilling)
            for what, times in self._failed_in_a_row.items():
                if times >= FAILED_STEPS_LIMIT:
                    self._break(f"the last {times} {what}s failed")
                    return

    def _next_batch(self) -> "_Batch | None":
        """Wait until there is something to do and take it; None when stopping.

        The batch is empty when there is only a prefill to advance.
        """
        with self._wake:
            while not self._stopping:
                if self._to_prefill and not self._prefilling:
                    self._start_prefill()
                now = time.monotonic()
                live, backlog = self._queues.ready(self._runs, now)
                wait = self._wait_seconds(live, backlog, now)
                if wait is None or wait > 0:
                    self._wake.wait(wait)
                    continue
                slots = np.sort(np.concatenate([live, backlog[: self._backlog_limit]]))
                arrivals = self._queues.arrivals(slots)
                frames = self._queues.take(slots)
                indices = self._next_frame[slots]
                self._next_frame[slots] += 1
                fresh, self._to_reset = np.array(self._to_reset, dtype=np.int64), []
                return _Batch(
                    slots,
                    self._streams_of(slots),
                    indices,
                    frames,
                    arrivals,
                    fresh,
                    self._streams_of(fresh),
                    len(backlog) > 0,
                )
            return None

    def _streams_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._uses[slots] << SLOT_BITS | slots

    def _wait_seconds(self, live: NDArray[np.int64], backlog: NDArray[np.int64], now: float) -> float | None:
        """How long to wait before stepping these slots: 0 or less is now, None is until something happens."""
        if len(backlog) or self._prefilling:
            return 0.0
        if not len(live):
            return None
        # An idle model need not wait at all; the busier it is, the more a shared step saves.
        longest_wait = self._settings.max_wait_seconds * self._times.busy_share(now)
        return self._queues.wait_seconds(self._runs, live, now, longest_wait)

    def _step(self, batch: "_Batch") -> None:
        if len(batch.fresh):
            try:
                self._model.reset(batch.fresh)
                self._failed_in_a_row["reset"] = 0
            except Exception as error:
                self._fail(batch.fresh_streams, "reset", error)
        if not len(batch.slots):
            return
        start = time.monotonic()
        try:
            output = self._model.step(batch.slots, batch.frames)
        except Exception as error:
            self._fail(batch.streams, "step", error)
            return
        end = time.monotonic()
        self._failed_in_a_row["step"] = 0
        with self._wake:
            self._times.add(end, end - start, len(batch.slots))
        self._metrics.note_step(start - batch.arrivals, end - start)
        if batch.has_backlog:
            too_long = end - start > self._settings.backlog_step_seconds
            limit = self._backlog_limit // 2 if too_long else self._backlog_limit + 1
            self._backlog_limit = min(max(1, limit), self._model.slots)
        engine_seconds = (end - batch.arrivals).astype(np.float32)
        self._on_results(
            FrameResults(
                batch.streams,
                batch.indices,
                output.tokens,
                output.codes,
                output.pauses,
                engine_seconds,
                output.probabilities,
            )
        )

    def _fail(self, streams: NDArray[np.int64], what: str, error: Exception) -> None:
        """The model failed: the state of these streams is unknown, so they end; nobody else does."""
        _log.error("model failed", what=what, streams=len(streams), error=repr(error), exc_info=error)
        # A step that works says nothing about resets, which new streams alone need.
        self._failed_in_a_row["reset" if what == "reset" else "step"] += 1
        self._failed_steps_total += 1
        self._end(streams.tolist(), StepFailed(f"the model failed on a {what}: {type(error).__name__}: {error}"))

    def _end(self, streams: list[int], error: SpeechError) -> None:
        with self._wake:
            slots = {stream: self._slot_of(stream) for stream in streams}
            ended = [stream for stream, slot in slots.items() if slot is not None]
            for stream in ended:
                self._release(stream & ((1 << SLOT_BITS) - 1))
        if ended:
            self._on_failure(ended, error)

    def _break(self, why: str) -> None:
        """End every stream and admit no more, so that the engine is replaced."""
        error = StepFailed(f"{why}; this engine has stopped")
        with self._wake:
            self._broken = error
            streams = self._streams_of(np.flatnonzero(self._open)).tolist()
        self._end(streams, error)

    # ------------------------------------------------------------------ prefill, in its bounded pieces

    def _start_prefill(self) -> None:
        """Take all waiting histories into one prefill; the lock is held."""
        waiting, self._to_prefill = self._to_prefill, {}
        slots, histories = [], []
        for slot, history in waiting.items():
            try:
                self._model.prefill([slot], [history])  # checks the history; nothing moves before it is iterated
            except Exception as error:
                _log.error("history refused", error=repr(error))
                self._end([self._stream_of(slot)], StepFailed(f"the history does not fit the model: {error}"))
            else:
                slots.append(slot)
                histories.append(history)
        if not slots:
            return
        streams = self._streams_of(np.array(slots, dtype=np.int64))
        self._prefilling = _Prefill(slots, streams, self._model.prefill(slots, histories))

    def _advance_prefill(self, prefill: "_Prefill") -> None:
        try:
            next(prefill.pieces)
            return
        except StopIteration:
            pass
        except Exception as error:
            self._fail(prefill.streams, "prefill", error)
        with self._wake:
            self._prefilling = None
            for slot in prefill.slots:
                if self._open[slot]:
                    self._runs[slot] = True
                else:
                    self._free.append(slot)


class _Batch(NamedTuple):
    """What one turn of the step loop works on."""

    slots: NDArray[np.int64]
    streams: NDArray[np.int64]
    indices: NDArray[np.int32]
    frames: NDArray[np.float32]
    arrivals: NDArray[np.float64]
    fresh: NDArray[np.int64]
    fresh_streams: NDArray[np.int64]
    has_backlog: bool


class _Prefill(NamedTuple):
    """A prefill under way."""

    slots: list[int]
    streams: NDArray[np.int64]
    pieces: Iterator[None]
