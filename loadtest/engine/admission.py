"""How many streams an engine lets in, and what one more costs the others: `--admission`.

The engine's own batcher steps the model in its own thread, in real time, while streams come one after the other, each
with a frame every 80 ms at a phase of its own. Once it has refused one, and every context is full, their frames are
timed; then again while it is asked for one more slot ten times a second.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from loadtest.engine.measuring import Audio
from serve_app import settings
from serve_app.engine.batcher import Batcher, Model
from serve_app.engine.loading import load_model
from serve_app.errors import AtCapacity, SpeechError
from serve_app.settings import EngineSettings
from serve_app.speech import FRAME_SECONDS, FrameResults
from serve_app.telemetry import configure_logging

STREAMS_PER_SECOND = 25
"""How fast streams come: the engine judges by its steps of the last ten seconds."""

TICK_SECONDS = 0.002
"""How punctual frames are."""

ASK_SECONDS = 0.1
"""Time between two tries to get one stream more in."""

STOP_SECONDS = 10.0
"""How long the crowd, then a step in flight, may take to end."""


@dataclass(frozen=True)
class Admitted:
    """What the engine let in."""

    slots: int
    streams: int
    """Open when the engine refused the next one."""
    refusal: str
    """What it said."""
    tries: int
    """How often it refused one more while frames were timed again."""
    later: int
    """How many it let in after all, meanwhile: its headroom had grown."""
    before_p50_ms: float
    """From a frame's arrival to its result, with nobody asking."""
    before_p99_ms: float
    after_p50_ms: float
    """The same while one stream more asked for a slot."""
    after_p99_ms: float
    headroom: float
    """At the end."""


class AdmissionFailed(Exception):
    """The engine failed on a stream, gave no frame back, or fell so far behind that it took no more."""


class _Crowd:
    """Streams of one batcher, fed in real time by a thread of their own."""

    def __init__(self, batcher: Batcher, audio: Audio) -> None:
        self._batcher, self._audio = batcher, audio
        self._draw = random.Random(0)
        self._streams: list[tuple[int, float]] = []  # ids, and when their next frame comes
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="crowd", daemon=True)
        self.failure = ""

    def __len__(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        """Begin to feed whoever joins."""
        self._thread.start()

    def join(self) -> None:
        """Open one stream more. Raises AtCapacity, and the error that broke the batcher."""
        stream = self._batcher.open()
        with self._lock:
            self._streams.append((stream, time.monotonic() + self._draw.uniform(0, FRAME_SECONDS)))

    def leave(self) -> None:
        """Feed nobody any more."""
        self._over.set()
        self._thread.join(STOP_SECONDS)

    def _feed(self) -> None:
        fed = 0
        while not self._over.wait(TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for place, (stream, due_at) in enumerate(self._streams):
                    if due_at > now:
                        continue
                    frame = self._audio.of(np.array([place]), np.array([fed]))
                    fed += 1
                    if not self._batcher.feed(stream, frame):
                        self.failure = "a stream's queue of frames is full"
                    self._streams[place] = stream, due_at + FRAME_SECONDS


class _Measurement:
    """One engine and its crowd, from start to stop. All methods but `__init__` raise AdmissionFailed."""

    def __init__(self, model: Model, engine: EngineSettings) -> None:
        self._waits: list[NDArray[np.float32]] = []
        self._failures: list[SpeechError] = []
        self._batcher = Batcher(model, on_results=self._note, on_failure=self._fail, settings=engine)
        self._crowd = _Crowd(self._batcher, Audio())
        self.tries = 0

    def __enter__(self) -> Self:
        self._batcher.start()
        self._crowd.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._crowd.leave()
        try:
            self._batcher.stop(STOP_SECONDS)
        except TimeoutError as stuck:
            if error is None:  # else it has failed before, for a reason that says more
                raise AdmissionFailed(f"the engine does not stop: {stuck}") from None

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._crowd)

    @property
    def headroom(self) -> float:
        """The engine's, now."""
        return self._batcher.load().headroom

    def let_in(self) -> str:
        """Let streams in until one is refused; what was said to it."""
        while not (refusal := self._join()):
            time.sleep(1 / STREAMS_PER_SECOND)
            self._check()
        return refusal

    def fill(self) -> None:
        """Wait until every context is full."""
        self._go_on(self._batcher.info.context_frames * FRAME_SECONDS)

    def timed(self, seconds: float, asking: bool = False) -> tuple[float, float]:
        """From a frame's arrival to its result, p50 and p99 in ms; `asking`, while one stream more wants a slot."""
        self._waits.clear()
        self._go_on(seconds, asking)
        if not self._waits:
            raise AdmissionFailed(f"no frame came back within {seconds:g} s")
        p50, p99 = np.percentile(np.concatenate(self._waits), (50, 99)) * 1e3
        return round(float(p50), 2), round(float(p99), 2)

    def _go_on(self, seconds: float, asking: bool = False) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if asking and self._join():
                self.tries += 1
            time.sleep(ASK_SECONDS)
            self._check()

    def _join(self) -> str:
        """Let one stream more in; what was said to it if it was refused."""
        try:
            self._crowd.join()
        except AtCapacity as error:
            return error.message
        except SpeechError as error:
            raise AdmissionFailed(error.message) from None
        return ""

    def _check(self) -> None:
        if failure := self._crowd.failure or next((error.message for error in self._failures), ""):
            raise AdmissionFailed(failure)

    def _note(self, results: FrameResults) -> None:
        self._waits.append(results.engine_seconds)

    def _fail(self, _: list[int], error: SpeechError) -> None:
        self._failures.append(error)


def measure(args: dict[str, Any], seconds: float, fill: bool, tell: Callable[[str], None]) -> Admitted:
    """Let streams in and time their frames for `seconds`, twice; `args` are the application's.

    With `fill` nothing is timed before every context is full. Raises AdmissionFailed, and what loading a model raises.
    """
    loaded = settings.from_args(args, environ={})
    configure_logging(loaded.log_level, loaded.log_format)
    model = load_model(loaded)
    with _Measurement(model, loaded.engine) as measurement:
        tell(f"letting up to {model.slots} streams in")
        refusal = measurement.let_in()
        if fill:
            tell("waiting until every context is full")
            measurement.fill()
        streams = measurement.streams
        tell("timing frames")
        before = measurement.timed(seconds)
        tell("timing frames while one more asks")
        after = measurement.timed(seconds, asking=True)
        later = measurement.streams - streams
        headroom = round(measurement.headroom, 3)
    return Admitted(model.slots, streams, refusal, measurement.tries, later, *before, *after, headroom)


def show(admitted: Admitted, as_json: bool) -> None:
    """Print what was let in."""
    if as_json:
        print(json.dumps(asdict(admitted)))
        return
    print(
        f"{admitted.streams} streams were let in ({admitted.slots} slots), the next one heard: {admitted.refusal}\n"
        f"from a frame's arrival to its result: {admitted.before_p50_ms} ms (p50), {admitted.before_p99_ms} ms (p99)\n"
        f"while one more asked {admitted.tries + admitted.later} times and {admitted.later} were let in:"
        f" {admitted.after_p50_ms} ms, {admitted.after_p99_ms} ms"
    )
