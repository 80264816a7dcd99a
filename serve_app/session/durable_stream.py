"""A stream of frames that outlives its engine.

It remembers enough of itself (see `recorder`) to be re-created anywhere: when its engine is lost, when it has to leave
an engine that is shutting down, or when it comes back after having given its slot up. Frames go out at least once,
results come in exactly once and in order.

It is in one of four states: *held* by an engine (`_slot`), *moving* to another one (`_moving`), *parked* (neither), or
over (`_error`, `_closed`).
"""

import asyncio
import time
from collections import deque
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import AtCapacity, EngineLost, SpeechError
from serve_app.session.admission import Returning
from serve_app.session.engines import Engines, EngineStream
from serve_app.session.recorder import Recorder
from serve_app.settings import SessionSettings
from serve_app.speech import FrameResult
from serve_app.telemetry import IngressMetrics, get_logger

_log = get_logger(__name__)

MOVES_WITHOUT_RESULT = 3
"""Engines that may fail in a row without answering a single frame: more, and it is the stream's own doing."""

QUIESCE_SECONDS = 2.0
"""How long a planned move waits for the results that the old engine still owes."""

RESULT_TIMEOUT_SECONDS = 30.0
"""An engine that owes a result for this long is lost."""

RETRY_SECONDS = 0.2
"""Time between two tries to find a slot for a move."""

Reason: TypeAlias = Literal["engine_lost", "draining", "restart", "unpark", "resume"]
State: TypeAlias = Literal["migrating", "live", "parked"]
Standing: TypeAlias = Literal["live", "moving", "parked"]


class DurableListener(Protocol):
    """Who wants to hear of a durable stream."""

    def on_result(self, result: FrameResult) -> None:
        """The next frame's result: each exactly once, in order."""

    def on_state(self, state: State) -> None:
        """The stream is on its way to another engine, back in a slot, or has given its slot up."""

    def on_failed(self, error: SpeechError) -> None:
        """The stream could not be kept alive; nothing follows."""


class _Slot:
    """A slot on one engine, and the ear for what comes from there; once left, nothing of it is heard any more."""

    def __init__(self, owner: "DurableStream", first_frame: int) -> None:
        self._owner: DurableStream | None = owner
        self._stream: EngineStream | None = None
        self.given = first_frame
        """Frames that the engine was given, or knows from the history."""
        self.lost: SpeechError | None = None
        """Why nothing comes from this engine any more."""

    async def take(self, engines: Engines, session_id: str, recorder: Recorder, *, patient: bool = True) -> None:
        """Take the slot. Raises AtCapacity, EngineLost or StepFailed."""
        history = recorder.history() if recorder.answered else None
        self._stream = await engines.open(session_id, self, history, patient=patient)
        if self.lost:  # between the attach and now
            self.leave()
            raise self.lost

    def give(self, recorder: Recorder) -> None:
        """Send the engine every frame that it does not have yet."""
        missing = recorder.sent - self.given
        if missing and self._stream:
            self._stream.send(recorder.unanswered[-missing:])
            self.given = recorder.sent

    def hear_no_more(self) -> None:
        """Whatever still comes from this engine comes too late."""
        self._owner = None

    def leave(self) -> None:
        """Give the slot back and hear no more."""
        self.hear_no_more()
        stream, self._stream = self._stream, None
        if stream:
            stream.close()

    def on_result(self, result: FrameResult) -> None:
        if self._owner:
            self._owner._on_result(result)

    def on_lost(self, error: SpeechError) -> None:
        self.lost = error
        if self._owner:
            self._owner._on_lost(self, error)

    def on_draining(self) -> None:
        if self._owner:
            self._owner._on_draining(self)


class DurableStream:
    """See the module's docstring. All methods run in one event loop; one task sends."""

    def __init__(
        self,
        session_id: str,
        engines: Engines,
        settings: SessionSettings,
        metrics: IngressMetrics,
        listener: DurableListener,
        recorder: Recorder,
        returning: Returning,
    ) -> None:
        """`recorder` is a new one, or that of a stream that this one continues."""
        self._id = session_id
        self._engines = engines
        self._settings = settings
        self._metrics = metrics
        self._listener = listener
        self._recorder = recorder
        self._returning = returning
        self._slot: _Slot | None = None
        self._moving: asyncio.Task[None] | None = None
        self._moves_without_result = 0
        self._error: SpeechError | None = None
        self._closed = False
        self._progress = asyncio.Event()
        # When each unanswered frame was sent.
        self._sent_at = deque([time.monotonic()] * (recorder.sent - recorder.answered))
        self._owed_since = 0.0  # when the engine last had no reason to be late

    @property
    def standing(self) -> Standing:
        """Where the stream is now."""
        return "moving" if self._moving else "live" if self._slot else "parked"

    async def open(self) -> None:
        """Take a slot. Raises ModelNotReady, AtCapacity or EngineLost."""
        slot = _Slot(self, self._recorder.answered)
        await slot.take(self._engines, self._id, self._recorder)
        self._slot = slot

    def resume(self) -> None:
        """Go on where another stream was, in whichever slot there is; until then frames are kept."""
        if not self._slot and not self._moving:
            self._start_move("resume")

    async def send_some(self, frames: NDArray[np.float32]) -> int:
        """Send the first of these frames, float32 [n, FRAME_SAMPLES], as many as there is room for: at least one.

        Waits while a window of frames is unanswered (backpressure); a cancellation while it waits sends none. While the
        stream is between two engines a window of frames is kept. Raises what ended the stream, if it is over.
        """
        piece = frames[: await self._wait_for_room()]
        self._recorder.add_frames(piece)
        self._sent_at.extend([time.monotonic()] * len(piece))
        self._metrics.frames_total.inc(len(piece))
        if self._moving:
            pass  # they are sent at the end of the move
        elif self._slot:
            self._give(self._slot)
        else:
            self._start_move("unpark")
        return len(piece)

    def park(self) -> bool:
        """Give the slot up until the next frame comes; False if the stream is busy."""
        if not self._slot or self._moving or self._recorder.sent > self._recorder.answered:
            return False
        self._leave()
        self._listener.on_state("parked")
        return True

    def restart(self, kept_frames: int) -> bool:
        """Forget all but the latest frames that were heard and go on from there; False if the stream is busy."""
        if not self._slot or self._moving:
            return False
        self._recorder.forget(kept_frames)
        self._start_move("restart")
        return True

    def check(self) -> None:
        """Leave an engine that has owed a result for too long; call this now and then."""
        late = time.monotonic() - self._owed_since > RESULT_TIMEOUT_SECONDS
        if late and self._slot and not self._moving and self._recorder.sent > self._recorder.answered:
            error = EngineLost(f"the engine has owed a result for {RESULT_TIMEOUT_SECONDS:g} s")
            _log.warning("engine lost", session_id=self._id, error=repr(error))
            self._start_move("engine_lost", error)

    def finish(self) -> None:
        """Give the slot up, or the search for another one: every frame is answered, and none follows."""
        if self._moving:
            self._moving.cancel()
        self._leave()

    async def close(self) -> None:
        """Give the slot back for good. Idempotent; safe at any moment."""
        self._closed = True
        self._progress.set()
        if self._moving:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        self._leave()

    # ------------------------------------------------------------------ from the present engine

    def _on_result(self, result: FrameResult) -> None:
        recorder = self._recorder
        if self._error:
            return
        if result.frame != recorder.answered or result.codes.shape != (recorder.codebooks,):
            self._fail(
                EngineLost(
                    f"expected the result of frame {recorder.answered} with {recorder.codebooks} codes, got that of"
                    f" {result.frame} with {result.codes.shape}"
                )
            )
            return
        recorder.add_result(result)
        self._moves_without_result = 0
        self._owed_since = time.monotonic()
        result_seconds = self._owed_since - self._sent_at.popleft()
        self._metrics.result_seconds.observe(result_seconds)
        # Also what lies in between where a frame was sent a second time: to another engine.
        self._metrics.link_seconds.observe(max(0.0, result_seconds - result.engine_seconds))
        self._progress.set()
        try:
            self._listener.on_result(result)
        except Exception as error:  # our own mistake: it would fail again in every other slot
            _log.error("result not understood", session_id=self._id, frame=result.frame, exc_info=error)
            self._fail(SpeechError("the server failed on a result; the session is over"))

    def _on_lost(self, slot: _Slot, error: SpeechError) -> None:
        self._progress.set()  # a planned move may be waiting for results that will not come
        if slot is self._slot and not self._moving and not self._closed:
            _log.warning("engine lost", session_id=self._id, error=repr(error))
            self._start_move("engine_lost", error)

    def _on_draining(self, slot: _Slot) -> None:
        if slot is self._slot and not self._moving and not self._closed:
            self._start_move("draining")

    # ------------------------------------------------------------------ inside

    async def _wait_for_room(self) -> int:
        """Frames that may be sent now, at least one."""
        while True:
            if self._error:
                raise self._error
            if self._closed:
                raise EngineLost("the stream was closed")
            room = self._settings.window_frames - (self._recorder.sent - self._recorder.answered)
            if room > 0:
                return room
            self._progress.clear()
            await self._progress.wait()

    def _give(self, slot: _Slot) -> None:
        if slot.given == self._recorder.answered:
            self._owed_since = time.monotonic()
        slot.give(self._recorder)

    def _leave(self) -> None:
        slot, self._slot = self._slot, None
        if slot:
            slot.leave()

    def _start_move(self, reason: Reason, error: SpeechError | None = None) -> None:
        """Begin a move; `error` is what took the present engine away."""
        self._moves_without_result += 1
        if error and self._moves_without_result > MOVES_WITHOUT_RESULT:
            self._fail(error)
            return
        self._moving = asyncio.create_task(self._move(reason), name=f"session-{self._id}-move")

    async def _move(self, reason: Reason) -> None:
        """Leave the present engine, if there is one, and go on in another slot."""
        self._listener.on_state("migrating")
        started_at = time.monotonic()
        deadline = started_at + self._settings.move_timeout_seconds
        try:
            found = None
            if self._slot and reason != "engine_lost":
                await self._quiesce(self._slot)
                found = await self._find_slot_at_once()
            elif reason == "unpark":
                # Most find one: only who does not comes before everybody new, who would be refused meanwhile.
                found = await self._find_slot_at_once()
            self._leave()
            with self._returning:
                self._slot = found or await self._find_slot(deadline)
        except SpeechError as error:
            self._fail(error)
            return
        except Exception as error:  # our own mistake: nobody awaits this task
            _log.error("move failed", session_id=self._id, exc_info=error)
            self._fail(SpeechError("the server failed to move the session; it is over"))
            return
        finally:
            self._moving = None
        self._owed_since = time.monotonic()
        self._give(self._slot)
        seconds = time.monotonic() - started_at
        self._metrics.moves_total.labels(reason).inc()
        self._metrics.move_seconds.observe(seconds)
        frame = self._recorder.answered
        _log.info("moved", session_id=self._id, reason=reason, seconds=round(seconds, 3), frame=frame)
        self._listener.on_state("live")

    async def _quiesce(self, slot: _Slot) -> None:
        """Wait for the results of all frames that the engine was given; it is not given more meanwhile."""
        try:
            async with asyncio.timeout(QUIESCE_SECONDS):
                while not slot.lost and self._recorder.answered < slot.given:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            owed = slot.given - self._recorder.answered
            _log.warning("left an engine that still owed results", session_id=self._id, frames=owed)
        slot.hear_no_more()

    async def _find_slot_at_once(self) -> _Slot | None:
        """A slot, while the present one, if there is one, is kept; None if that takes more than one try.

        An engine that is stopped ends once it is empty, and what replaces it may only start then: do not hold it up.
        """
        try:
            return await self._find_slot(deadline=0.0, patient=False)
        except (AtCapacity, EngineLost):
            return None

    async def _find_slot(self, deadline: float, *, patient: bool = True) -> _Slot:
        """A slot in which this stream goes on; at least one try. Raises AtCapacity, EngineLost or StepFailed."""
        while True:
            slot = _Slot(self, self._recorder.answered)
            try:
                await slot.take(self._engines, self._id, self._recorder, patient=patient)
                return slot
            except (AtCapacity, EngineLost) as error:
                if time.monotonic() > deadline:
                    raise
                _log.info("no slot to move to yet", session_id=self._id, error=error.message)
                await asyncio.sleep(RETRY_SECONDS)

    def _fail(self, error: SpeechError) -> None:
        self._error = self._error or error
        self._progress.set()
        self._listener.on_failed(self._error)
