"""Processes that must not survive us.

Ray puts its workers into process groups of their own and lets some processes outlive their parents, but none leaves
the session (`setsid`) it was started in. So a command gets a session of its own, and whatever is in it ends with it.
A small process beside it, the keeper, sees to that even where this one is killed outright.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil  # type: ignore[import-untyped]

SECONDS_TO_DIE = 10.0


class Session:
    """A command and everything it starts.

    Make it within `signals_as_exits`: a signal that this process ignores, as a shell's background job ignores Ctrl-C,
    would be ignored by the command too.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: str) -> None:
        self.command = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # The keeper's standard input ends when this process does, however it ends.
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.command.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self, first: signal.Signals, patience_s: float) -> None:
        """Ask the command to end with the signal, wait for it, and kill whatever of the session is still there."""
        if self.command.poll() is None:
            self.command.send_signal(first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.command.wait(patience_s)
        kill_all(self.command.pid)
        self.command.wait()
        self._keeper.communicate()


def keep(session: int) -> None:
    """What the keeper does: wait for the end of its parent, then end the session."""
    sys.stdin.buffer.read()
    kill_all(session)


def members(session: int) -> list[psutil.Process]:
    """All living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(session: int) -> None:
    """Kill what lives in the session, and what that starts meanwhile."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := members(session)) and time.monotonic() < deadline:
        for member in left:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(left, timeout=1)


@contextlib.contextmanager
def signals_as_exits() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into SystemExit, so that `finally` blocks run."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in ours]
    try:
        yield
    finally:
        for number, handler in zip(ours, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Let nothing interrupt the cleaning up, which is bounded in time."""
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in ours]
    try:
        yield
    finally:
        for number, handler in zip(ours, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    keep(int(sys.argv[1]))
