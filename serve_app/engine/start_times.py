"""How long an engine takes from the start of its process to its first token, stage by stage."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

STARTTIME = 19
"""Where /proc/self/stat has the process's start, in clock ticks since the boot; counted from behind its name."""


class StartTimes:
    """Seconds of each stage of one start; make it as early in the process as possible."""

    def __init__(self) -> None:
        self._seconds = {"process": process_age_seconds()}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as a stage's; a stage may come several times."""
        started_at = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started_at

    def as_fields(self) -> dict[str, float]:
        """`process_seconds` (what was before the engine's own code), one field per stage, and `total_seconds`."""
        seconds = {**self._seconds, "total": process_age_seconds()}
        return {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}


def process_age_seconds() -> float:
    """Seconds since this process was started."""
    if sys.platform != "linux":
        return max(0.0, time.time() - float(psutil.Process().create_time()))
    # psutil adds the time of the boot, which Linux tells in whole seconds only.
    behind_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = int(behind_name[STARTTIME])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
