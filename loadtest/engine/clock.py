"""What a piece of work costs: time on the wall, and compute time."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

Result = TypeVar("Result")


class Cost(NamedTuple):
    """Seconds that a piece of work took."""

    wall_s: float
    compute_s: float
    """CPU time of all threads, or time on the GPU: other programs on the same cores do not count."""


def measure(device: torch.device, work: Callable[[], Result]) -> tuple[Result, Cost]:
    """Run `work` to the end of everything that it started on the device."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        started_at = time.perf_counter()
        begin.record()
        result = work()
        end.record()
        torch.cuda.synchronize(device)
        return result, Cost(time.perf_counter() - started_at, begin.elapsed_time(end) / 1e3)
    cpu_at, started_at = time.process_time(), time.perf_counter()
    result = work()
    return result, Cost(time.perf_counter() - started_at, time.process_time() - cpu_at)
