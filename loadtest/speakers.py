"""Locust's side of a speaker process (`loadtest.speaker`): sessions that greenlets wait for."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import gevent
from gevent.event import AsyncResult

from serve_app.measuring.speaking import Outcome
from serve_app.settings import PROJECT_ROOT

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class SpeakerFailed(Exception):
    """The speaker process did not start, or is gone; the text says why."""


class Speakers:
    """A speaker process. Made after Locust's own processes have forked, and closed by whoever made it."""

    def __init__(self, manner: Mapping[str, Any], clips: str | None, length: str, seed: str) -> None:
        """The arguments are what `loadtest.speaker` wants to know. Raises `SpeakerFailed`."""
        self._process = subprocess.Popen(  # gevent's, in a Locust process: waits hold up no other greenlet
            [sys.executable, "-m", "loadtest.speaker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT_ROOT,
            text=True,
            start_new_session=True,  # Ctrl-C is Locust's
        )
        self._numbers = itertools.count()
        self._waiting: dict[int, AsyncResult] = {}
        self._order(manner=dict(manner), clips=clips, length=length, seed=seed)
        try:
            with gevent.Timeout(START_TIMEOUT_S, SpeakerFailed(f"not ready after {START_TIMEOUT_S:g} s")):
                answer = json.loads(self._process.stdout.readline() or '{"error": "the speaker process ended"}')
            if "error" in answer:
                raise SpeakerFailed(answer["error"])
        except SpeakerFailed:
            self.close()
            raise
        self._reading = gevent.spawn(self._read)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def say(self) -> Outcome:
        """Hold one session and wait for its end. Raises `SpeakerFailed`."""
        number = next(self._numbers)
        result = self._waiting[number] = AsyncResult()
        is_over = False
        try:
            self._order(say=number)
            outcome = Outcome(**result.get())
            is_over = True
            return outcome
        finally:
            del self._waiting[number]
            if not is_over and self._process.poll() is None:
                self._order(stop=number)

    def close(self) -> None:
        """End the process, and the sessions that it still holds."""
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _order(self, **fields: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(fields) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise SpeakerFailed("the speaker process ended") from None

    def _read(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            if waiting := self._waiting.get(answer["said"]):
                waiting.set(answer["outcome"])
        for waiting in self._waiting.values():
            waiting.set_exception(SpeakerFailed("the speaker process ended"))
