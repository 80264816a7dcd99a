"""What is wrong with a cluster's file: Ray's launcher's (`ray up`), or KubeRay's RayService.

Ray takes any name for a GPU, and then waits without end for a machine that has it. Here the machines that a file offers
are compared with what is known of GPUs, and with what the engines will ask for.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.gpus import Gpus
from serve_app.settings import EngineSettings

ACCELERATOR_TYPE = "accelerator_type:"
"""How Ray's resources for types of GPUs begin."""


@dataclass(frozen=True)
class Group:
    """Machines, or pods, of one kind."""

    place: str
    """Where it is in the file."""

    least: int
    """Machines that always run."""

    most: int
    """Machines that there may be."""

    gpus: int
    """GPUs of each."""

    types: tuple[str, ...]
    """Accelerator types that each offers."""


def groups(document: Mapping[str, Any]) -> list[Group]:
    """The groups of worker machines in a file of either kind; none where Ray finds the machines' GPUs by itself.

    Raises ValueError, KeyError, TypeError or AttributeError for a document that a schema would refuse.
    """
    return list(_pods(document) if document.get("kind") == "RayService" else _machines(document))


def problems(found: list[Group], gpus: Gpus, *engines: EngineSettings) -> Iterator[str]:
    """One line for each thing that would keep engines from starting, or Ray from starting machines for them.

    `engines` are those of each model.
    """
    for group in found:
        if group.least > group.most:
            yield f"{group.place}: expected a minimum of at most the maximum ({group.most}), got {group.least}"
        if group.gpus and not group.types:
            yield f"{group.place}: expected a resource accelerator_type:NAME beside its GPUs, got none"
        for name in group.types:
            try:
                gpus.gpu(name)
            except ValueError as error:
                yield f"{group.place}: {ACCELERATOR_TYPE}{name}: {error}"
    needed: defaultdict[str | None, float] = defaultdict(float)
    for engine in engines if found else ():
        if engine.reserved_gpus:
            needed[engine.gpu] += engine.most_replicas * engine.reserved_gpus
            yield from _too_few(found, engine, needed[engine.gpu])


def _too_few(found: list[Group], engine: EngineSettings, needed: float) -> Iterator[str]:
    """`needed` are GPUs of its type, with those of the models before it."""
    fitting = [group for group in found if group.gpus and (engine.gpu is None or engine.gpu in group.types)]
    offered = sorted({name for group in found if group.most for name in group.types})
    there = sum(group.most * group.gpus for group in fitting)
    if not fitting:
        yield f"engine.gpu: expected one of {', '.join(offered) or 'none'}, which the cluster has, got {engine.gpu}"
    elif not there:
        yield f"engine.gpu: expected a group with {engine.gpu or 'GPUs'} that may have machines, got a maximum of 0"
    elif needed > there:
        yield (
            f"engine: expected at most {there} GPUs for all engines, which is what the cluster may have of"
            f" {engine.gpu or 'any type'}, got {needed:g}: fewer replicas, or more machines"
        )


def _machines(document: Mapping[str, Any]) -> Iterator[Group]:
    most = document.get("max_workers", 2)  # Ray's default
    for name, kind in document.get("available_node_types", {}).items():
        if name != document.get("head_node_type"):
            resources = kind.get("resources", {})
            yield Group(
                place=f"available_node_types.{name}",
                least=kind.get("min_workers", 0),
                most=min(most, kind.get("max_workers", most)),
                gpus=int(resources.get("GPU", 0)),
                types=_types(resources),
            )


def _pods(document: Mapping[str, Any]) -> Iterator[Group]:
    for number, kind in enumerate(document["spec"]["rayClusterConfig"].get("workerGroupSpecs", [])):
        resources = kind.get("resources", {})
        yield Group(
            place=f"spec.rayClusterConfig.workerGroupSpecs[{number}]",
            least=kind["minReplicas"],
            most=kind["maxReplicas"],
            gpus=int(resources.get("GPU", 0)),
            types=_types(resources),
        )


def _types(resources: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name.removeprefix(ACCELERATOR_TYPE) for name in resources if name.startswith(ACCELERATOR_TYPE))
