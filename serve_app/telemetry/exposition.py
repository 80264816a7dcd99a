"""The metrics of many replicas as one text for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from serve_app.telemetry.aliases import aliases
from serve_app.telemetry.board import Report


def merged(reports: Sequence[Report]) -> list[Metric]:
    """One family of each name; its samples say whose they are: `deployment`, `replica` and, of engines, `model`."""
    families: dict[str, Metric] = {}
    for source, reported, _ in reports:
        whose = {name: value for name, value in source._asdict().items() if value} if source else {}
        for family in reported:
            into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [
                sample._replace(labels={**sample.labels, **whose})
                for sample in family.samples
                if not sample.name.endswith("_created")  # a second series for every counter, which nobody asks for
            ]
    return list(families.values())


def render(families: Sequence[Metric], accept: str = "") -> tuple[bytes, str]:
    """The families and their aliases, and the content type, in the format that the `Accept` header asks for."""
    encoder, content_type = choose_encoder(accept)
    return encoder(_Families([*families, *aliases(families)])), content_type


class _Families:
    """What encoders take for a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
