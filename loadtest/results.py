"""Runs that are kept: the command, the commit, the machine, and the numbers that came out.

A run is a JSON file in `loadtest/results/` with exactly these four fields. `make bench` runs the commands again.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_app.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "loadtest" / "results"


class UnusableResult(Exception):
    """A file is not one that `save` wrote."""


@dataclass(frozen=True)
class Machine:
    """What a run ran on."""

    cpu: str
    cores: int
    """That this process may run on."""
    memory_gb: int
    gpus: list[str]
    """Names; none without a driver."""

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        memory_gb = round(psutil.virtual_memory().total / 2**30)
        return cls(_cpu(), len(os.sched_getaffinity(0)), memory_gb, _gpus())


@dataclass(frozen=True)
class Result:
    """A run and what came out of it."""

    command: str
    """As one types it in the project's folder."""
    commit: str
    """With `+changes` where files differed from it."""
    machine: Machine
    numbers: Any
    """Whatever the program measures, as JSON."""


def save(name: str, program: str, arguments: Sequence[str], numbers: Any, folder: Path = FOLDER) -> Path:
    """Keep a run of `program` (`python -m loadtest.engine`) with these arguments as `{name}.json`; the file."""
    command = f"{program} {shlex.join(arguments)}".rstrip()
    result = Result(command, _commit(), Machine.here(), numbers)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def load(file: Path) -> Result:
    """Read a run. Raises `UnusableResult`."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return Result(**{**fields, "machine": Machine(**fields["machine"])})
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UnusableResult(f"{file}: expected command, commit, machine and numbers ({error!r})") from None


def _commit() -> str:
    """Empty where the project is no git checkout."""
    try:
        head = _output("git", "-C", str(PROJECT_ROOT), "rev-parse", "--short=12", "HEAD")
        changed = _output("git", "-C", str(PROJECT_ROOT), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+changes" if changed else head


def _cpu() -> str:
    """The name that Linux knows; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []  # a driver without a card


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
