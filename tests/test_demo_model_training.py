"""The training loop: interrupted and resumed it does what it would have done; NaN stops it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tools.demo_model import training
from tools.demo_model.training import TrainingError, train

STEPS = 12


class Interrupted(Exception):
    """Someone pressed control-C."""


def run(folder: Path, stop_at: int = STEPS, value: float = 1.0) -> nn.Linear:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise Interrupted
        return (module(torch.randn(8, 3)) - value).square().mean(), {}

    folder.mkdir(exist_ok=True)
    train("test", module, module.parameters(), loss_of, steps=STEPS, rate=0.1, decay=0, seed=5, folder=folder)
    return module


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        run(tmp_path / "a", stop_at=7)
    resumed, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert torch.equal(resumed.weight, whole.weight)


def test_a_loss_that_is_no_number_stops_it_with_step_and_seed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a finite loss, got nan at step 0 with seed 5"):
        run(tmp_path, value=float("nan"))
