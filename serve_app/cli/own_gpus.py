"""The GPUs of this machine, as the Ray that `stt serve` starts will count and name them."""

from dataclasses import dataclass
from typing import Self

from serve_app.cluster_file import engines_on
from serve_app.settings import EngineSettings, SettingsError


@dataclass(frozen=True)
class OwnGpus:
    """What Ray finds here."""

    count: int
    """GPUs that this process may use."""

    kind: str | None
    """Ray's name of their accelerator type; None where there are none."""

    @classmethod
    def found(cls) -> Self:
        """Look at this machine."""
        from ray._private.accelerators import get_accelerator_manager_for_resource  # a second, which few commands need

        manager = get_accelerator_manager_for_resource("GPU")
        visible = manager.get_current_process_visible_accelerator_ids()
        there = manager.get_current_node_num_accelerators()
        count = there if visible is None else min(there, len(visible))
        return cls(count, manager.get_current_node_accelerator_type() if count else None)

    def check(self, *engines: EngineSettings) -> None:
        """Raises SettingsError where the engines of all models, one after another, ask for more than is here.

        Ray would wait for it without end.
        """
        taken = 0.0
        for engine in engines:
            taken = self._check(engine, taken)

    def _check(self, engine: EngineSettings, taken: float) -> float:
        """GPUs that are taken with these engines, too."""
        first = max(1, engine.autoscaling.min_replicas) if engine.autoscaling else engine.replicas
        needed = engine.reserved_gpus * first
        if needed and taken + needed > self.count:
            asked = f"engine.gpu {engine.gpu}" if engine.gpu else "engine.device cuda or engine.num_gpus"
            problem = (
                f"{asked}: expected {needed:g} GPUs on this machine (engines: {first})"
                f"{f' beside {taken:g} of other models' if taken else ''}, found {self.count}: see whether"
                " nvidia-smi shows them, serve on the CPU (engine.device: cpu, no engine.gpu), or on a cluster"
            )
        elif needed and first > (most := engines_on(self.count, engine.reserved_gpus)):
            problem = (
                f"engine.num_gpus: expected at most {most} engines of {engine.reserved_gpus:g} GPUs each on this"
                f" machine (it has {self.count}, and no engine gets parts of two), got {first}: fewer engines, or serve"
                " on a cluster"
            )
        elif engine.gpu and engine.gpu != self.kind:
            problem = (
                f"engine.gpu: expected {self.kind}, which this machine has, got {engine.gpu}: leave engine.gpu"
                " (KYUTAI_GPU) out and set engine.device: cuda, or serve on a cluster"
            )
        else:
            return taken + needed
        raise SettingsError([f"{problem} (RAY_ADDRESS)"])
