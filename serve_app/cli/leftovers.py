"""The folder of a running launcher, and what is left of launchers that were killed.

A launcher holds a lock on a file in its folder; the kernel lets go of it however the launcher ends. So a folder whose
lock is free is nobody's any more: the next start removes it, and ends what may still live of its session.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import psutil  # type: ignore[import-untyped]

from serve_app.cli import processes

# Ray and HAProxy keep Unix sockets (at most 107 bytes of path) here, below a folder with a 56-digit name.
BASE = Path("/tmp" if sys.platform == "linux" else tempfile.gettempdir())
PREFIX = "stt-"
LOCK = "launcher.lock"
SESSION = "session"


class RunFolder:
    """A folder of our own, for as long as this process lives."""

    def __init__(self, base: Path = BASE) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Locked before it has its name: nobody ever sees it free while we live.
        unnamed = self.path / f"{LOCK}.new"
        self._lock = unnamed.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def remember(self, session: int) -> None:
        """Note the session whose processes must not survive us. They must mention the folder in their environment."""
        (self.path / SESSION).write_text(f"{session}\n", encoding="ascii")

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(base: Path = BASE) -> None:
    """Remove what launchers of this user have left that were killed. Never raises: it is only cleaning up."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, psutil.Error):
            status = folder.lstat()
            if status.st_uid != os.getuid() or folder.is_symlink():
                continue
            with (folder / LOCK).open("rb") as lock:  # what has no lock is no launcher's
                if _free(lock):
                    _end_session(folder)
                    shutil.rmtree(folder, ignore_errors=True)


def _free(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_session(folder: Path) -> None:
    """Kill what is left of the folder's session; where the kernel has given its number away, it is left alone."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        session = int((folder / SESSION).read_text(encoding="ascii"))
        if any(_mentions(process, str(folder)) for process in processes.members(session)):
            processes.kill_all(session)


def _mentions(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return any(folder in text for text in (*process.environ().values(), *process.cmdline()))
    return False
