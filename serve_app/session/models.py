"""The models that are served: what an ingress replica holds for each of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.errors import UnknownModel, shown
from serve_app.session.admission import Admission, Returning
from serve_app.session.engines import EnginePool
from serve_app.settings import ModelSettings, Settings


@dataclass(frozen=True)
class ServedModel:
    """One model: its engines, and who waits for them."""

    name: str
    """What clients call it."""
    settings: ModelSettings
    engines: EnginePool
    returning: Returning
    """Its sessions that have lost their slot."""
    admission: Admission
    """The line for its slots."""


class Models:
    """All of them, the default first."""

    def __init__(self, settings: Settings, engines: Mapping[str, EnginePool]) -> None:
        """`engines` are those of each model, by its name."""
        self._models = {
            name: _served(name, view, engines[name], settings.ingress.max_waiting)
            for name, view in settings.served.items()
        }
        self.default = next(iter(self._models.values()))
        """What clients get that ask for none."""

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def names(self) -> list[str]:
        """What clients may ask for."""
        return list(self._models)

    def named(self, asked: str | None) -> ServedModel:
        """The model that a client asks for. Raises UnknownModel."""
        if not asked:
            return self.default
        if asked not in self._models:
            names = " or ".join(map(repr, self._models))
            raise UnknownModel(f"expected the model {names}, got {shown(asked)}")
        return self._models[asked]

    def loads(self, name: str) -> Mapping[str, Mapping[str, float]]:
        """The latest load report of each connected engine of a model, by the engine's name."""
        return self._models[name].engines.loads()

    @property
    def leases(self) -> int:
        """Slots that are held now."""
        return sum(model.engines.leases for model in self)

    @property
    def waiting(self) -> int:
        """Clients in line."""
        return sum(len(model.admission) for model in self)

    @property
    def any_ready(self) -> bool:
        """Whether any of them has an engine."""
        return any(model.engines.is_ready for model in self)

    @property
    def without_engine(self) -> list[str]:
        """Those that have none."""
        return [model.name for model in self if not model.engines.is_ready]


def _served(name: str, settings: Settings, engines: EnginePool, max_waiting: int) -> ServedModel:
    returning = Returning()
    line = Admission(max_waiting, returning, lambda: engines.can_grow)
    return ServedModel(name, settings.model_settings, engines, returning, line)
