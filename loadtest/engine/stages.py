"""Where the time of a step goes: codec, decoder, and the rest."""

from collections.abc import Callable
from typing import Any

import torch

from loadtest.engine.clock import measure

STAGES = ("codec", "decoder")


class Stages:
    """Times of a step's stages, taken only while `on`: on a GPU, taking them makes the stages wait for each other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.on = False
        self.spent_s = dict.fromkeys(STAGES, 0.0)

    def take(self) -> dict[str, float]:
        """Seconds since the last call, by stage."""
        spent, self.spent_s = self.spent_s, dict.fromkeys(STAGES, 0.0)
        return spent

    def watch(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time added to a stage's."""

        def watched(*arguments: Any) -> Any:
            if not self.on:
                return work(*arguments)
            result, cost = measure(self._device, lambda: work(*arguments))
            self.spent_s[name] += cost.step_s
            return result

        return watched
