"""How many slots an engine can promise: as many as memory holds and as one step takes in time.

What is measured is the worst case, every stream with a full context and all their frames at once, so a session that is
let in never slows the others below real time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch

from serve_app.model.checkpoint import Checkpoint
from serve_app.model.model import SpeechModel
from serve_app.settings import MOST_SLOTS, EngineSettings
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

STEP_SHARE = 0.4
"""Largest share of a frame's 80 ms that a step of all slots may take: a frame may wait for one such step before its
own, and the machine has other things to do."""

MEMORY_SHARE = 0.8
"""Largest share of the free memory that slots may take."""

FIRST_WIDTHS = (1, 8)
"""Rows of the first steps that are tried; then twice as many each time."""

REFINEMENTS = 3
"""Tries between a number of slots that fits and one that does not."""

MOST_SECONDS = 4.0
"""No number of slots is tried after so long."""

TRIES = (2, 8)
"""Least and most steps for each number of slots; the quickest counts."""

TRY_SECONDS = 0.4
"""Time for the steps of one number of slots, beyond the least."""

MEMORY_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
"""Where a container's memory limit stands, and what of it is taken."""


@dataclass(frozen=True)
class Sizing:
    """A number of slots, and why not more."""

    slots: int
    bound: Literal["memory", "step time", "time to measure", "nothing in real time"]
    step_seconds: dict[int, float]
    """Measured steps, by the number of slots that took part."""


def find_slots(
    step_seconds: Callable[[int], float], most: int, longest: float, is_late: Callable[[], bool] = lambda: False
) -> Sizing:
    """The largest number of slots up to `most` whose step, `step_seconds(slots)`, was seen to take at most `longest`.

    Longer steps are assumed for more slots. Nothing more is tried once `is_late()`. Where not even one slot steps in
    time the answer is one.
    """
    measured: dict[int, float] = {}
    fits, too_many, width = 0, 0, 1
    while not too_many and fits < most and not (fits and is_late()):
        measured[width] = step_seconds(width)
        if measured[width] > longest:
            too_many = width
        else:
            fits, width = width, min(most, max(2 * width, FIRST_WIDTHS[1]))
    for _ in range(REFINEMENTS):
        if too_many - fits <= 1 or not fits or is_late():
            break
        slope = (measured[too_many] - measured[fits]) / (too_many - fits)
        width = min(too_many - 1, max(fits + 1, int(fits + (longest - measured[fits]) / slope)))
        measured[width] = step_seconds(width)
        fits, too_many = (width, too_many) if measured[width] <= longest else (fits, width)
    if not fits:
        return Sizing(1, "nothing in real time", measured)
    return Sizing(fits, "step time" if too_many else "memory" if fits == most else "time to measure", measured)


def slots_in_memory(free_bytes: int, bytes_per_slot: int) -> int:
    """How many slots fit into the memory that is free now; at least 1, at most MOST_SLOTS."""
    return min(MOST_SLOTS, max(1, int(MEMORY_SHARE * free_bytes) // bytes_per_slot))


def choose_slots(checkpoint: Checkpoint, engine: EngineSettings) -> int:
    """Measure the model on its device, for a few seconds at most, and say in the log what was decided and why."""
    started_at = time.monotonic()
    device = checkpoint.device
    state_bytes = SpeechModel(checkpoint, 1, kv_cache_dtype=engine.kv_cache_dtype).bytes_per_slot
    queue_bytes = engine.queue_frames * FRAME_SAMPLES * np.dtype(np.float32).itemsize
    host_bytes = free_host_bytes() // engine.replicas  # they may all be on this machine
    if device.type == "cuda":
        share = min(1.0, engine.reserved_gpus or 1.0)  # replicas may have a GPU in common
        free_bytes = int(torch.cuda.mem_get_info(device)[0] * share)
        most = min(slots_in_memory(free_bytes, state_bytes), slots_in_memory(host_bytes, queue_bytes))
    else:
        free_bytes = host_bytes
        most = slots_in_memory(free_bytes, state_bytes + queue_bytes)
    longest = min(STEP_SHARE, 1.0 - engine.min_headroom) * FRAME_SECONDS
    sizing = find_slots(
        partial(_step_seconds, checkpoint, engine), most, longest, lambda: time.monotonic() - started_at > MOST_SECONDS
    )
    tell = _log.warning if sizing.bound == "nothing in real time" else _log.info
    tell(
        "slots chosen",
        slots=sizing.slots,
        bound=sizing.bound,
        step_ms={slots: round(1e3 * seconds, 1) for slots, seconds in sorted(sizing.step_seconds.items())},
        longest_step_ms=round(1e3 * longest, 1),
        slots_in_memory=most,
        free_megabytes=free_bytes >> 20,
        bytes_per_slot=state_bytes,
        took_seconds=round(time.monotonic() - started_at, 2),
    )
    return sizing.slots


def free_host_bytes() -> int:
    """Memory that this process may still take: of the machine, or of its container where that has a limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, taken = (Path(name).read_text(encoding="ascii").strip() for name in MEMORY_LIMIT_FILES)
        return free if limit == "max" else min(free, max(0, int(limit) - int(taken)))
    except (OSError, ValueError):
        return free


def _step_seconds(checkpoint: Checkpoint, engine: EngineSettings, slots: int) -> float:
    """Time of a step of so many slots, their caches full.

    On a CPU it is at most the CPU time of all threads: what else the machine happens to do while an engine starts says
    nothing about later, and a step that has the cores to itself takes no longer.
    """
    on_cpu = checkpoint.device.type == "cpu"
    model, every = SpeechModel(checkpoint, slots, kv_cache_dtype=engine.kv_cache_dtype), np.arange(slots)
    model.pretend_full(every)
    frames = np.zeros((slots, FRAME_SAMPLES), np.float32)
    times: list[float] = []
    least, most = TRIES
    while len(times) < least or (len(times) < most and sum(times) < TRY_SECONDS):
        started_at, cpu_at = time.perf_counter(), time.process_time()
        model.step(every, frames)
        took, cpu_took = time.perf_counter() - started_at, time.process_time() - cpu_at
        times.append(min(took, cpu_took) if on_cpu else took)
    return min(times)
