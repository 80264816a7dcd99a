"""What was measured, as the fields of one JSON object."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.engine.capacity import in_real_time, percentile_s
from loadtest.engine.floor import Work
from loadtest.engine.machine import Machine
from loadtest.engine.measuring import Measured, Tally
from loadtest.engine.stages import STAGES


@dataclass
class Result:
    """Everything that one run of the program has found out."""

    model: str
    command: str
    commit: str
    machine: Machine
    dtype: str
    bytes_per_stream: int
    work: Work
    max_wait_s: float
    measured: list[Measured] = field(default_factory=list)
    realtime_streams: int = 0
    started_at: str = ""

    def as_fields(self) -> dict[str, Any]:
        """For JSON: `streams` holds compute time per second of audio at random phases, everything else is below it."""
        return {
            "streams": {str(streams): self._streams(streams) for streams in self._counts()},
            "realtime_streams": self.realtime_streams,
            "floor_share": self.floor_share(),
            "bytes_per_stream": self.bytes_per_stream,
            "device": self.machine.device,
            "commit": self.commit,
            "model": self.model,
            "dtype": self.dtype,
            "max_wait_seconds": self.max_wait_s,
            "command": self.command,
            "started_at": self.started_at,
            "copy_bytes_per_s": round(self.machine.bytes_per_s),
            "matrix_operations_per_s": round(self.machine.operations_per_s),
            "weight_bytes": self.work.weight_bytes,
            "operations_per_stream": self.work.operations_per_stream,
            "loads": [self._load(one) for one in self.measured],
        }

    def floor_share(self) -> float | None:
        """Share of the arithmetic floor that our step reaches: all frames aligned, at the largest number of streams."""
        aligned = [one for one in self.measured if one.load == "aligned" and one.age == self.age]
        if not aligned:
            return None
        largest = max(aligned, key=lambda one: one.streams)
        return _rounded(self.floor_ms(largest) / (1e3 * percentile_s(largest.ours.steps_s, 50)))

    def floor_ms(self, one: Measured) -> float:
        """The floor of a step of all streams at full context."""
        return 1e3 * self.work.floor_s(one.streams, self.machine)

    @property
    def age(self) -> str:
        """The age of the sessions that the summary speaks of: with full caches, where those were measured."""
        return "full" if any(one.age == "full" for one in self.measured) else "early"

    def _counts(self) -> list[int]:
        return sorted({one.streams for one in self.measured})

    def _streams(self, streams: int) -> dict[str, Any]:
        of_count = [one for one in self.measured if one.streams == streams]
        [random] = [one for one in of_count if one.load == "random" and one.age == self.age]
        compared = [one.agreement for one in of_count if one.moshi]
        return {
            "ours_ms": _rounded(random.ours.compute_ms_per_audio_s),
            "moshi_ms": _rounded(random.moshi.compute_ms_per_audio_s) if random.moshi else None,
            "ratio": _rounded(random.ratio),
            "tokens_equal": all(agreement.equal for agreement in compared) if compared else None,
            "tokens_compared": sum(agreement.tokens for agreement in compared),
            "tokens_different": sum(agreement.different for agreement in compared),
            "near_ties": sum(agreement.near_ties for agreement in compared),
            "age": self.age,
        }

    def _load(self, one: Measured) -> dict[str, Any]:
        return {
            "streams": one.streams,
            "age": one.age,
            "load": one.load,
            "ratio": _rounded(one.ratio),
            "ours": _side(one.ours),
            "moshi": _side(one.moshi) if one.moshi else None,
            "tokens_compared": one.agreement.tokens,
            "tokens_different": one.agreement.different,
            "near_ties": one.agreement.near_ties,
            "codes_different": one.agreement.codes_different,
        }


def _side(tally: Tally) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "compute_ms_per_audio_s": _rounded(tally.compute_ms_per_audio_s),
        **_percentiles("step", tally.steps_s),
        **_percentiles("wait_and_step", tally.waits_and_steps_s),
        "in_real_time": in_real_time(tally.waits_and_steps_s),
        "steps": len(tally.steps_s),
    }
    for stage in (*STAGES, "rest"):
        fields |= _percentiles(stage, tally.stages_s[stage])
    return fields


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p{percent}_ms": _rounded(1e3 * percentile_s(list(values), percent)) for percent in (50, 99)}


def _rounded(value: float | None) -> float | None:
    """Four significant digits; None of nothing."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
