"""What this machine can do at best, measured when the program starts."""

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from loadtest.engine.clock import measure
from serve_app.settings import PROJECT_ROOT

SECONDS = 1.0
"""How long each of the two is tried; the best try counts, for others may be at work."""


@dataclass(frozen=True)
class Machine:
    """Rates of the device."""

    device: str
    bytes_per_s: float
    """Read and written by a large copy."""
    operations_per_s: float
    """Of a large matrix product, in the language model's dtype or the codec's, whichever is faster."""


def probe(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure the device's copy bandwidth and matrix rate."""
    on_gpu = device.type == "cuda"
    source = torch.zeros((4096 if on_gpu else 256) * 2**20 // 4, device=device)
    target = torch.empty_like(source).fill_(1.0)
    size = 8192 if on_gpu else 1024
    copied = _best_s(device, lambda: target.copy_(source))
    rates = []
    for kind in {dtype, torch.float32}:
        left, right = (torch.rand(size, size, device=device).to(kind) for _ in range(2))
        rates.append(2 * size**3 / _best_s(device, partial(torch.matmul, left, right)))
    return Machine(describe(device), 2 * source.nbytes / copied, max(rates))


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def commit() -> str:
    """The commit that is measured, `+` where files differ from it; empty where there is no git."""
    try:
        asked = ("git", "-C", str(PROJECT_ROOT))
        head = subprocess.run([*asked, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*asked, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _best_s(device: torch.device, work: Callable[[], object]) -> float:
    times, ends_at = [], time.monotonic() + SECONDS
    while not times or time.monotonic() < ends_at:
        times.append(measure(device, work)[1].step_s)
    return min(times)
