"""What a piece of work costs: time until it is done, and compute time."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

Result = TypeVar("Result")


class Cost(NamedTuple):
    """Seconds that a piece of work took."""

    step_s: float
    """How long one waits for it. On a CPU at most the CPU time of all threads, which is never less than it takes on a
    machine that has nothing else to do: what other programs do to the time on the wall does not count."""
    compute_s: float
    """CPU time of all threads, or time on the GPU."""


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
    wall_s, compute_s = time.perf_counter() - started_at, time.process_time() - cpu_at
    return result, Cost(min(wall_s, compute_s), compute_s)
