"""The loop that every trained stage shares: it can be interrupted, shows how far it is, and stops at the first NaN."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from moshi.utils.compile import no_compile
from torch import Tensor, nn

from tools.demo_model.files import save
from tools.demo_model.progress import Progress

WARM_UP_STEPS = 60
LAST_RATE = 0.03  # of the highest
SAVE_SECONDS = 60.0

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where models learn."""

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Loss of a step, from 0, and figures to show."""


class TrainingError(Exception):
    """A training that cannot go on; the text says where it was."""


def train(
    name: str,
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    loss_of: Loss,
    *,
    steps: int,
    rate: float,
    decay: float,
    seed: int,
    folder: Path,
) -> None:
    """Train `parameters` of a module, from where an earlier call with the same `folder` was interrupted.

    Raises TrainingError when the loss is no number, and OSError where the state cannot be written.
    """
    module.to(DEVICE).train()
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    saved = folder / "training.pt"
    first = 0
    if saved.exists():
        state = torch.load(saved, map_location=DEVICE, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    saved_at = time.monotonic()
    with no_compile(), Progress(name, steps, first) as progress:  # compiling moshi's small functions saves nothing
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            torch.manual_seed(seed * 1_000_003 + step)  # a resumed training sees what an uninterrupted one would
            loss, shown = loss_of(step)
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"{name}: expected a finite loss, got {loss.item()} at step {step} with seed {seed}"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            progress.advance({"loss": float(loss.detach()), **shown})
            if time.monotonic() - saved_at > SAVE_SECONDS:
                save(saved, {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
                saved_at = time.monotonic()
    module.cpu().eval()


def _schedule(step: int, steps: int) -> float:
    """Share of the highest rate: a short rise, then half a cosine."""
    fall = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (fall * (1 - LAST_RATE) + LAST_RATE)
