"""GPUs of this machine, and engines that ask for some."""

from typing import Any

import pytest
import torch

from serve_app.cli.own_gpus import OwnGpus
from serve_app.settings import EngineSettings, SettingsError


@pytest.mark.parametrize(
    ("own", "engine"),
    [
        (OwnGpus(0, None), {}),
        (OwnGpus(0, None), {"device": "cpu", "replicas": 4}),
        (OwnGpus(1, "L4"), {"gpu": "L4"}),
        (OwnGpus(1, "GeForce-RTX-5090"), {"device": "cuda"}),
        (OwnGpus(1, "L4"), {"gpu": "L4", "num_gpus": 0.5, "replicas": 2}),
        (OwnGpus(1, "L4"), {"gpu": "L4", "autoscaling": {"min_replicas": 0, "max_replicas": 10}}),
    ],
)
def test_engines_that_can_start(own: OwnGpus, engine: dict[str, Any]):
    own.check(EngineSettings(**engine))


@pytest.mark.parametrize(
    ("own", "engine", "expected"),
    [
        (OwnGpus(0, None), {"gpu": "L4"}, "engine.gpu L4: expected 1 GPUs on this machine (engines: 1), found 0: "),
        (OwnGpus(0, None), {"device": "cuda"}, "engine.device cuda or engine.num_gpus: expected 1 GPUs"),
        (OwnGpus(2, "L4"), {"gpu": "L4", "replicas": 3}, "expected 3 GPUs on this machine (engines: 3), found 2"),
        (OwnGpus(1, "L4"), {"gpu": "L4", "autoscaling": {"min_replicas": 2}}, "expected 2 GPUs on this machine"),
        (
            OwnGpus(2, "L4"),
            {"gpu": "L4", "num_gpus": 0.6, "replicas": 3},
            "engine.num_gpus: expected at most 2 engines of 0.6 GPUs each on this machine",
        ),
        (OwnGpus(1, "L4"), {"gpu": "H100"}, "engine.gpu: expected L4, which this machine has, got H100: leave"),
    ],
)
def test_engines_that_would_wait_without_end(own: OwnGpus, engine: dict[str, Any], expected: str):
    with pytest.raises(SettingsError) as error:
        own.check(EngineSettings(**engine))
    assert expected in str(error.value)


def test_models_share_the_gpus_that_there_are():
    half, whole = (EngineSettings(gpu="L4", num_gpus=share) for share in (0.5, 1.0))
    OwnGpus(1, "L4").check(half, half, EngineSettings())
    with pytest.raises(SettingsError, match=r"expected 1 GPUs .* beside 0\.5 of other models"):
        OwnGpus(1, "L4").check(half, whole)


def test_ray_counts_the_gpus_of_this_machine_as_torch_does():
    found = OwnGpus.found()
    assert found.count == torch.cuda.device_count()
    assert (found.kind is None) == (found.count == 0)
