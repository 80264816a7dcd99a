"""What GPUs can carry: the contents of `configs/gpus.yaml`, and the arithmetic behind numbers that are not measured.

A step reads the weights once and every session's caches: that, not computing, is what takes its time.
"""

import datetime
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.problems import did_you_mean
from serve_app.speech import FRAME_SECONDS

Number = TypeVar("Number", float, NDArray[np.float64])

HEADROOM = 0.2
"""Share of a frame's 80 ms that a derived capacity leaves free."""

BANDWIDTH_SHARE = 0.7
"""Share of its vendor's bandwidth that a GPU is believed to reach while it attends over scattered caches."""

OTHER_SECONDS = 0.010
"""What a step is believed to take besides: the codec, sampling, starting kernels."""

MEMORY_SHARE = 0.9
"""Share of the memory that can be planned with."""

RESERVED_GIGABYTES = 3.0
"""Memory for the codec, embeddings, work space and CUDA itself."""


class _Facts(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelCost(_Facts):
    """What a model asks of a GPU, in bfloat16."""

    weights_gigabytes: float = Field(gt=0)
    """Weights that every step reads."""

    session_megabytes: float = Field(gt=0)
    """Caches of one session at full context."""


class Price(_Facts):
    """What a GPU costs."""

    dollars_per_hour: float = Field(gt=0)
    """List price on demand, for one GPU."""

    source: str
    """Who asks that."""

    date: datetime.date | None
    """When that was so; None if the source does not say."""


class Capacity(_Facts):
    """How many sessions of one model a GPU carries."""

    slots: int = Field(ge=0)
    """Sessions at once in real time."""

    basis: Literal["derived", "measured"]
    """How that is known."""

    date: datetime.date | None = None
    """When it was measured."""

    command: str | None = None
    """What measured it."""

    @model_validator(mode="after")
    def _measurements_can_be_repeated(self) -> Self:
        if self.basis == "measured" and not (self.date and self.command):
            raise ValueError("basis: expected a date and a command with 'measured'")
        return self


class Gpu(_Facts):
    """One type of GPU."""

    memory_gigabytes: float = Field(gt=0)
    """Memory."""

    bandwidth_gigabytes_per_second: float = Field(gt=0)
    """Memory bandwidth, as the vendor has it."""

    bfloat16: bool = True
    """Whether it computes in bfloat16; else everything takes twice the memory."""

    price: Price | None = None
    """What it costs, where that is known."""

    capacity: dict[str, Capacity]
    """By model."""

    def memory_slots(self, model: ModelCost, share: float = 1.0, *, eight_bit: bool = False) -> int:
        """Sessions whose caches, of 8-bit floats or not, fit into this share of the memory, beside the weights."""
        free = self.memory_gigabytes * MEMORY_SHARE * share - RESERVED_GIGABYTES
        free -= model.weights_gigabytes * self._size
        megabytes = model.session_megabytes * (0.5 if eight_bit else self._size)
        return max(0, int(free / (megabytes / 1000)))

    def step_seconds(self, model: ModelCost, sessions: Number) -> Number:
        """What one step for so many sessions at full context takes, derived; of an array, each."""
        gigabytes = (model.weights_gigabytes + sessions * model.session_megabytes / 1000) * self._size
        return OTHER_SECONDS + gigabytes / (self.bandwidth_gigabytes_per_second * BANDWIDTH_SHARE)

    def bandwidth_slots(self, model: ModelCost) -> int:
        """Sessions whose step leaves `HEADROOM`, derived."""
        first = self.step_seconds(model, 0)
        per_session = self.step_seconds(model, 1) - first
        return max(0, int((FRAME_SECONDS * (1 - HEADROOM) - first) / per_session))

    def derived_slots(self, model: ModelCost) -> int:
        """Sessions at once in real time, by whichever of the two ends first."""
        return min(self.memory_slots(model), self.bandwidth_slots(model))

    def capacity_for(self, name: str, model: ModelCost) -> Capacity:
        """How many sessions of the model of this name: as the file has it, else derived."""
        return self.capacity.get(name) or Capacity(slots=self.derived_slots(model), basis="derived")

    @property
    def _size(self) -> int:
        return 1 if self.bfloat16 else 2


class Gpus(_Facts):
    """The contents of `configs/gpus.yaml`."""

    models: dict[str, ModelCost]
    """By name in `configs/models`."""

    gpus: dict[str, Gpu]
    """By Ray's name of the accelerator type."""

    def gpu(self, name: str) -> Gpu:
        """Raises ValueError, which says what to do, for a GPU that is not in the file."""
        if name in self.gpus:
            return self.gpus[name]
        raise ValueError(
            f"expected one of {', '.join(self.gpus)}, got {name!r}{did_you_mean(name, self.gpus)};"
            " others can be added to configs/gpus.yaml"
        )

    def check_fit(self, name: str, model: str, slots: int, share: float = 1.0, *, eight_bit: bool = False) -> None:
        """Raises ValueError if so many slots do not fit into this share of the GPU; models of unknown cost do."""
        gpu, cost = self.gpu(name), self.models.get(model)
        if cost and slots > (most := gpu.memory_slots(cost, share, eight_bit=eight_bit)):
            part = f"{share:g} of " if share < 1 else ""
            advice = "; take a GPU with more memory" if most < 1 else ""
            raise ValueError(
                f"expected at most {most} for {model} in {part}the {gpu.memory_gigabytes:g} GB of an {name},"
                f" got {slots}{advice}"
            )
