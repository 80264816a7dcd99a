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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.engine.measuring import Audio
from serve_app import settings
from serve_app.engine.batcher import Batcher
from serve_app.engine.loading import load_model
from serve_app.errors import AtCapacity, SpeechError
from serve_app.speech import FRAME_SECONDS, FrameResults
from serve_app.telemetry import configure_logging

STREAMS_PER_SECOND = 25
"""How fast streams come: the engine judges by its steps of the last ten seconds."""

TICK_SECONDS = 0.002
"""How punctual frames are."""

ASK_SECONDS = 0.1
"""Time between two tries to get one stream more in."""

STOP_SECONDS = 10.0


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
    """The engine failed on a stream, or fell so far behind that it took no more frames."""


class _Crowd:
    """Streams of one batcher, fed in real time by a thread of their own."""

    def __init__(self, batcher: Batcher, audio: Audio) -> None:
        self._batcher, self._audio = batcher, audio
        self._draw = random.Random(0)
        self._streams: list[tuple[int, float]] = []  # ids, and when their next frame comes
        self._said = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="crowd", daemon=True)
        self._thread.start()
        self.failure = ""

    def __len__(self) -> int:
        return len(self._streams)

    def join(self) -> None:
        """Open one stream more. Raises AtCapacity."""
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


def measure(args: dict[str, Any], seconds: float, fill: bool, tell: Callable[[str], None]) -> Admitted:
    """Let streams in and time their frames for `seconds`, twice; `args` are the application's.

    With `fill` nothing is timed before every context is full. Raises AdmissionFailed, and what loading a model raises.
    """
    loaded = settings.from_args(args, environ={})
    configure_logging(loaded.log_level, loaded.log_format)
    model = load_model(loaded)
    waits: list[NDArray[np.float32]] = []
    failures: list[SpeechError] = []

    def note(results: FrameResults) -> None:
        waits.append(results.engine_seconds)

    def timed(what: str, meanwhile: Callable[[], None]) -> tuple[float, float]:
        tell(what)
        waits.clear()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            meanwhile()
            time.sleep(ASK_SECONDS)
        if failure := crowd.failure or next((error.message for error in failures), ""):
            raise AdmissionFailed(failure)
        p50, p99 = np.percentile(np.concatenate(waits), (50, 99)) * 1e3
        return round(float(p50), 2), round(float(p99), 2)

    tries = 0

    def ask() -> None:
        nonlocal tries
        try:
            crowd.join()
        except AtCapacity:
            tries += 1

    batcher = Batcher(
        model, on_results=note, on_failure=lambda _, error: failures.append(error), settings=loaded.engine
    )
    batcher.start()
    crowd = _Crowd(batcher, Audio())
    try:
        refusal = ""
        tell(f"letting up to {model.slots} streams in")
        while not refusal:
            try:
                crowd.join()
            except AtCapacity as error:
                refusal = error.message
            time.sleep(1 / STREAMS_PER_SECOND)
        if fill:
            tell("waiting until every context is full")
            time.sleep(model.info.context_frames * FRAME_SECONDS)
        streams = len(crowd)
        before = timed("timing frames", lambda: None)
        after = timed("timing frames while one more asks", ask)
        headroom = round(batcher.load().headroom, 3)
        return Admitted(model.slots, streams, refusal, tries, len(crowd) - streams, *before, *after, headroom)
    finally:
        crowd.leave()
        batcher.stop()


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
