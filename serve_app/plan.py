"""What a number of sessions needs and costs on each type of GPU. Pure: `stt plan` prints it."""

import sys
from dataclasses import dataclass, replace
from typing import Literal

from serve_app.autoscaling import Rules, replicas_needed
from serve_app.gpus import Gpus
from serve_app.settings import AutoscalingSettings, EngineSettings

WARM_REPLICAS = 2
"""Engines that always run in the warm option, as in the earlier services."""

BUFFER_REPLICAS = 1
"""Engines ready for bursts in the warm option."""

COLD_START_SECONDS = "20 to 30"
"""From nothing to the first word, as the earlier services report it; where a machine must be got first, minutes."""


@dataclass(frozen=True)
class Option:
    """One way to run the engines."""

    kind: Literal["cold", "warm"]
    """`cold` ends the last engine when nobody speaks; `warm` keeps some, and one ready for bursts."""

    idle_replicas: int
    """Engines while nobody speaks."""

    replicas: int
    """Engines for the planned sessions."""

    dollars_per_hour: float | None
    """For the planned sessions; None where no price is known."""

    dollars_per_session_hour: float | None
    """The same for one of them."""

    idle_dollars_per_hour: float | None
    """While nobody speaks."""


@dataclass(frozen=True)
class GpuPlan:
    """What one type of GPU would mean."""

    gpu: str
    slots: int
    """Sessions per engine, of which `target_share` are used."""

    basis: str
    """`derived` or `measured`."""

    why: str
    """What the capacity and the price rest on."""

    options: tuple[Option, ...]
    """Cold, then warm; none where the model does not fit."""


def plan(gpus: Gpus, model: str, sessions: int, names: list[str]) -> list[GpuPlan]:
    """One plan per GPU in `names`, the cheapest first, those without a price last.

    Raises ValueError for a GPU or a model that `gpus` does not know.
    """
    if model not in gpus.models:
        raise ValueError(f"expected one of {', '.join(gpus.models)}, got {model!r}: what others need is not known")
    plans = [_plan_one(gpus, model, sessions, name) for name in names]
    return sorted(plans, key=_cost)


def _plan_one(gpus: Gpus, model: str, sessions: int, name: str) -> GpuPlan:
    gpu, cost = gpus.gpu(name), gpus.models[model]
    capacity = gpu.capacity_for(model, cost)
    slots, basis = capacity.slots, capacity.basis
    if slots < 1:
        return GpuPlan(name, 0, basis, f"{model} does not fit into {gpu.memory_gigabytes:g} GB", ())
    price = gpu.price.dollars_per_hour if gpu.price else None
    options = (
        _option("cold", slots, sessions, price, min_replicas=0, buffer_replicas=0),
        _option("warm", slots, sessions, price, min_replicas=WARM_REPLICAS, buffer_replicas=BUFFER_REPLICAS),
    )
    memory_ends = gpu.memory_slots(cost) <= gpu.bandwidth_slots(cost)
    limit = f"{gpu.memory_gigabytes:g} GB" if memory_ends else f"{gpu.bandwidth_gigabytes_per_second:g} GB/s"
    found = f"limit: {limit}" if basis == "derived" else f"{capacity.command}, {capacity.date}"
    dated = f"{gpu.price.source}, {gpu.price.date or 'undated'}" if gpu.price else "no price known"
    return GpuPlan(name, slots, basis, f"{found}; {dated}", options)


def _option(
    kind: Literal["cold", "warm"],
    slots: int,
    sessions: int,
    price: float | None,
    *,
    min_replicas: int,
    buffer_replicas: int,
) -> Option:
    scaling = AutoscalingSettings(min_replicas=min_replicas, buffer_replicas=buffer_replicas)
    rules = Rules(**EngineSettings(slots=slots, autoscaling=scaling).scaling_rules)
    # The plan shall say what max_replicas should be.
    replicas = replicas_needed(replace(rules, max_replicas=sys.maxsize), slots, sessions)
    if price is None:
        return Option(kind, min_replicas, replicas, None, None, None)
    per_hour = replicas * price
    return Option(kind, min_replicas, replicas, per_hour, per_hour / sessions, min_replicas * price)


def _cost(plan: GpuPlan) -> tuple[bool, float]:
    cost = plan.options[0].dollars_per_hour if plan.options else None
    return cost is None, cost or 0.0
