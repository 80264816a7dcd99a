"""One run of the program: every number of streams, every age, every load."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loadtest.engine import machine
from loadtest.engine.capacity import in_time, realtime_streams
from loadtest.engine.floor import work_of
from loadtest.engine.loads import loads
from loadtest.engine.measuring import Audio, Contest, Effort, Measured, full_histories
from loadtest.engine.models import Source
from loadtest.engine.result import Result
from loadtest.engine.sides import Ours, Upstream
from serve_app.model import Checkpoint, load_checkpoint

MEMORY_SHARE = 0.8
"""Share of the free memory that the search for the largest number of streams may take."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    counts: list[int]
    """Numbers of streams, ascending."""
    ages: tuple[str, ...]
    effort: Effort
    search: bool
    """Whether to look for the largest number of streams in real time."""
    threads: int | None


def run(source: Source, device: torch.device, plan: Plan, progress: Callable[[float, str], None]) -> Result:
    """Measure a checkpoint. Raises CheckpointError for one that is not what it should be."""
    if device.type == "cpu":
        torch.set_num_threads(plan.threads or len(os.sched_getaffinity(0)))
    progress(0.0, "measuring the machine")
    rates = machine.probe(device, source.dtype)
    checkpoint = load_checkpoint(
        source.checkpoint, device=device, dtype=source.dtype, audio_delay_frames=source.audio_delay_frames
    )
    audio = Audio()
    bytes_per_stream = Ours(checkpoint, 1).model.bytes_per_slot
    result = Result(
        checkpoint.info.name, "", machine.commit(), rates, str(source.dtype).removeprefix("torch."), bytes_per_stream,
        work_of(checkpoint, bytes_per_stream), plan.effort.max_wait_s,
    )  # fmt: skip
    steps = len(plan.counts) * len(plan.ages) * len(loads(1)) + 1
    for streams in plan.counts:
        for age in plan.ages:

            def tell(load: str, streams: int = streams, age: str = age) -> None:
                progress(len(result.measured) / steps, f"{streams} streams, {age}, {load}")

            result.measured += measure_streams(checkpoint, audio, streams, age, plan.effort, tell)
    if plan.search:
        progress(1 - 1 / steps, "looking for the largest number of streams")
        most = int(MEMORY_SHARE * machine.free_bytes(device) / bytes_per_stream)
        result.realtime_streams = realtime_streams(
            checkpoint, audio, result.measured, result.age, most, plan.effort.max_wait_s
        )
    else:
        result.realtime_streams = max(in_time(result.measured, result.age), default=0)
    progress(1.0, "done")
    return result


def measure_streams(
    checkpoint: Checkpoint, audio: Audio, streams: int, age: str, effort: Effort, tell: Callable[[str], None]
) -> list[Measured]:
    """Measure all loads with one number of streams; without moshi where its state does not fit next to ours."""
    ours = Ours(checkpoint, streams)
    upstream: Upstream | None
    try:
        upstream = Upstream(checkpoint, streams)
    except torch.OutOfMemoryError:
        upstream = None
    try:
        contest, measured = Contest(checkpoint, audio, ours, upstream), []
        sides = [ours, *([upstream] if upstream else [])]
        if age == "full":
            tell("filling the caches")
            histories = full_histories(checkpoint, streams, audio)
            for side in sides:
                side.fill(histories)
        for load in loads(streams):
            tell(load.name)
            if age == "early":
                for side in sides:
                    side.restart()
            measured.append(contest.measure(load, age, effort))
        return measured
    finally:
        if upstream:
            upstream.close()
