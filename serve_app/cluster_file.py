"""What is wrong with a cluster's file: Ray's launcher's (`ray up`), or KubeRay's RayService.

Ray takes any name for a GPU, and then waits without end for a machine that has it. Here the machines that a file offers
are compared with what is known of GPUs, and with what the engines will ask for.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.gpus import Gpus
from serve_app.settings import EngineSettings

ACCELERATOR_TYPE = "accelerator_type:"
"""How Ray's resources for types of GPUs begin."""

KUBERAY_MOST = 2**31 - 1
"""What KubeRay takes for a `maxReplicas` that is missing."""

ROUNDING = 1e-6
"""As thirds of a GPU are written: three of 0.333333 fill one."""


def engines_on(gpus: int, asked: float) -> int:
    """How many engines, each asking for so many GPUs, fit on a machine: a part of a GPU lies on one GPU."""
    return gpus * int(1 / asked + ROUNDING) if asked <= 1 else int(gpus / asked)


@dataclass(frozen=True)
class Group:
    """Machines, or pods, of one kind."""

    place: str
    """Where it is in the file."""

    least: int
    """Machines that always run."""

    most: int
    """Machines that there may be."""

    cpus: float
    """CPUs of each; infinite where Ray finds them by itself."""

    gpus: int
    """GPUs of each."""

    types: tuple[str, ...]
    """Accelerator types that each offers."""

    def has(self, gpu: str | None) -> bool:
        """Whether its machines have GPUs of this type; None for any."""
        return self.gpus > 0 and (gpu is None or gpu in self.types)

    def gpus_of(self, gpu: str | None) -> int:
        """GPUs of this type of each of its machines."""
        return self.gpus if self.has(gpu) else 0

    def engines_each(self, engine: EngineSettings) -> int:
        """How many such engines fit on one of its machines: each on one machine, with its CPUs."""
        if not self.has(engine.gpu):
            return 0
        by_gpus = engines_on(self.gpus, engine.reserved_gpus)
        by_cpus = self.cpus / engine.num_cpus if engine.num_cpus else math.inf
        return int(min(by_gpus, by_cpus + ROUNDING))


@dataclass(frozen=True)
class Cluster:
    """All machines of a cluster."""

    head: Group
    """The one machine that always runs."""

    workers: tuple[Group, ...]
    """The others."""

    most_workers: int | None = None
    """Machines besides the head, of all groups together; None for no limit."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, the head as well."""
        return (self.head, *self.workers)

    def most(self, each: Callable[[Group], int]) -> int:
        """The most that the machines that there may be have together, of what a machine has `each`."""
        always = sum(group.least for group in self.workers)
        left = math.inf if self.most_workers is None else max(0, self.most_workers - always)
        total = each(self.head)
        for group in sorted(self.workers, key=each, reverse=True):
            more = int(min(max(0, group.most - group.least), left))
            left -= more
            total += (group.least + more) * each(group)
        return total


def read_cluster(document: Mapping[str, Any]) -> Cluster | None:
    """The machines in a file of either kind; None where Ray finds out by itself what they have.

    Raises ValueError, KeyError, TypeError or AttributeError for a document that a schema would refuse.
    """
    return _pods(document["spec"]["rayClusterConfig"]) if document.get("kind") == "RayService" else _machines(document)


def problems(cluster: Cluster, gpus: Gpus, engines: Mapping[str, EngineSettings]) -> Iterator[str]:
    """One line for each thing that would keep engines from starting, or Ray from starting machines for them.

    `engines` are those of each model, by their key in the settings.
    """
    for group in cluster.groups:
        if group.least > group.most:
            yield (
                f"{group.place}: expected a minimum of at most the maximum ({group.most}), got {group.least}:"
                " lower the one, or raise the other"
            )
        if group.gpus and not group.types:
            yield (
                f"{group.place}: expected a resource accelerator_type:NAME beside its GPUs, got none: add it to"
                " `resources`, with a name of configs/gpus.yaml, for engine.gpu is compared with it"
            )
        for name in group.types:
            try:
                gpus.gpu(name)
            except ValueError as error:
                yield f"{group.place}: {ACCELERATOR_TYPE}{name}: {error}"
    on_gpus = {key: engine for key, engine in engines.items() if engine.reserved_gpus}
    alone = [problem for key, engine in on_gpus.items() for problem in _one_model(cluster, key, engine)]
    yield from alone or _all_models(cluster, list(on_gpus.values()))


def _one_model(cluster: Cluster, key: str, engine: EngineSettings) -> Iterator[str]:
    """What is wrong with a model's engines, as if they had the cluster for themselves."""
    kind = engine.gpu or "GPUs"
    offered = sorted({name for group in cluster.groups if group.most for name in group.types})
    fitting = [group for group in cluster.groups if group.has(engine.gpu)]
    there = [group for group in fitting if group.most]
    most = cluster.most(lambda group: group.engines_each(engine))
    if not fitting and not offered:
        yield f"{key}: expected a group with {kind}, got none with any GPU: add one, or serve on CPUs (device: cpu)"
    elif not fitting:
        yield (
            f"{key}.gpu: expected one of {', '.join(offered)}, which the cluster has, got {kind}:"
            f" choose one of those, or add a group with {kind}"
        )
    elif not there:
        yield (
            f"{key}.gpu: expected a group with {kind} that may have machines, got a maximum of 0 ({fitting[0].place}):"
            " raise it"
        )
    elif (largest := max(group.gpus for group in there)) < engine.reserved_gpus:
        yield (
            f"{key}.num_gpus: expected at most {largest}, the GPUs of a machine with {kind}, got"
            f" {engine.reserved_gpus:g}: an engine runs on one machine; ask for fewer, or add larger machines"
        )
    elif not any(group.engines_each(engine) for group in there):
        cpus = max(group.cpus for group in there if group.gpus >= engine.reserved_gpus)
        yield (
            f"{key}.num_cpus: expected at most {cpus:g}, the CPUs of a machine with {kind}, got {engine.num_cpus:g}:"
            " ask for fewer, or declare more in the group's resources"
        )
    elif engine.most_replicas > most:
        yield (
            f"{key}: expected at most {most} engines (GPUs: {engine.reserved_gpus:g}, CPUs: {engine.num_cpus:g}), which"
            f" is what fits on the machines with {kind} that the cluster may have, got {engine.most_replicas}:"
            " fewer engines (replicas, or autoscaling.max_replicas), or more machines"
        )


def _all_models(cluster: Cluster, engines: list[EngineSettings]) -> Iterator[str]:
    """What is wrong with the engines of all models together: of one type of GPU, and of any."""
    for gpu in dict.fromkeys([*(engine.gpu for engine in engines), None]):
        asking = [engine for engine in engines if gpu in (None, engine.gpu)]
        needed = sum(engine.most_replicas * engine.reserved_gpus for engine in asking)
        there = cluster.most(partial(Group.gpus_of, gpu=gpu))
        if needed > there + ROUNDING:
            yield (
                f"engine, models: expected at most {there} GPUs for the engines of all models, which is what the"
                f" cluster may have of {gpu or 'any type'}, got {needed:g}: fewer engines, or more machines"
            )
            return


def _machines(document: Mapping[str, Any]) -> Cluster | None:
    kinds, head = document.get("available_node_types", {}), str(document.get("head_node_type"))
    if head not in kinds or any("resources" not in kind for name, kind in kinds.items() if name != head):
        return None
    limit = document.get("max_workers", 2)  # Ray's default

    def group(name: str, least: int, most: int) -> Group:
        resources = kinds[name].get("resources", {})
        cpus, gpus = float(resources.get("CPU", math.inf)), int(resources.get("GPU", 0))
        return Group(f"available_node_types.{name}", least, most, cpus, gpus, _types(resources))

    workers = (
        group(name, kind.get("min_workers", 0), min(limit, kind.get("max_workers", limit)))
        for name, kind in kinds.items()
        if name != head or kind.get("max_workers")  # more machines like the head: none where nothing is said
    )
    return Cluster(group(head, 1, 1), tuple(workers), limit)


def _pods(cluster: Mapping[str, Any]) -> Cluster:
    """Pods have what Ray's autoscaler takes them to have: `resources`, else `rayStartParams`, else the containers'."""
    # A second, which no other command needs.
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    def declared(kind: Mapping[str, Any], *, is_head: bool) -> tuple[float, int, tuple[str, ...]]:
        named = {"groupName": "", **kind}
        resources = _get_ray_resources_from_group_spec(named, is_head)
        return float(resources["CPU"]), int(resources.get("GPU", 0)), _types(resources)

    grows = bool(cluster.get("enableInTreeAutoscaling"))
    workers = []
    for number, kind in enumerate(cluster.get("workerGroupSpecs", [])):
        least, most = kind.get("minReplicas", 0), kind.get("maxReplicas", KUBERAY_MOST)
        if not grows:  # nobody changes the number, which KubeRay keeps within both
            most = min(max(kind.get("replicas", 0), least), most)
        hosts = kind.get("numOfHosts", 1)
        place = f"spec.rayClusterConfig.workerGroupSpecs[{number}]"
        workers.append(Group(place, least * hosts, most * hosts, *declared(kind, is_head=False)))
    head = declared(cluster["headGroupSpec"], is_head=True)
    return Cluster(Group("spec.rayClusterConfig.headGroupSpec", 1, 1, *head), tuple(workers))


def _types(resources: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name.removeprefix(ACCELERATOR_TYPE) for name in resources if name.startswith(ACCELERATOR_TYPE))
