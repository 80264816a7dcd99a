"""The CPUs of this machine, as the Ray that `stt serve` starts will count them, and what replicas reserve of them."""

from operator import itemgetter

from serve_app.settings import Settings, SettingsError

_Part = tuple[str, int, float]  # whose replicas, how many of them, CPUs of each


def found() -> int:
    """How many Ray finds here, or is told of (RAY_OVERRIDE_RESOURCES)."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec  # a second, which few commands need

    return int(ResourceAndLabelSpec().resolve(is_head=True).num_cpus)


def check(settings: Settings, count: int) -> None:
    """Raises SettingsError where the replicas that always run reserve more, or leave no room for any engine of a model.

    Ray would wait for it without end. Models whose engines all come and go may take turns.
    """
    ingress, kafka = settings.ingress, settings.kafka
    least = ingress.autoscaling.min_replicas if ingress.autoscaling else ingress.replicas
    always: list[_Part] = [("ingress", least, ingress.num_cpus)]
    turns: list[_Part] = []
    if kafka:
        always.append(("kafka", kafka.replicas, kafka.num_cpus))
    for name, served in settings.served.items():
        engine = served.engine
        least = engine.autoscaling.min_replicas if engine.autoscaling else engine.replicas
        (always if least else turns).append((f"engine of {name}", max(1, least), engine.num_cpus))
    largest = sorted(turns, key=itemgetter(2))[-1:]
    parts = [part for part in always + largest if part[2]]
    needed = round(sum(replicas * cpus for _, replicas, cpus in parts), 4)  # Ray's own precision
    if needed > count:
        reserved = ", ".join(f"{name}: {replicas} of {cpus:g}" for name, replicas, cpus in parts)
        raise SettingsError(
            [
                f"num_cpus: expected at most {count} CPUs in all, which this machine has, got {needed:g} ({reserved}):"
                " ask for fewer replicas or less (engine.num_cpus, ingress.num_cpus: 0.5 is fine), or serve on a"
                " cluster (RAY_ADDRESS)"
            ]
        )
