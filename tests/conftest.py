"""What tests of several modules share: the demo model, and engines without Ray."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported; see serve_app/openmp.py

from collections.abc import AsyncIterator

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from serve_app import settings as settings_module
from serve_app.engine.batcher import Model
from serve_app.engine.loading import load_model
from serve_app.settings import Settings
from tests.support import Clip, DirectEngines, manifest, running_engines

CLIP_SLOTS = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make screenshot` needs."""
    parser.addoption("--screenshot", metavar="FILE", help="where to leave a picture of the page that heard a clip")


# Two slow cores shared with an engine: how long an example takes to draw or to run says nothing about the code.
# What lands must not depend on luck, so continuous integration draws the same examples each time; people look further.
hypothesis_settings.register_profile(
    "shared-cores",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis_settings.load_profile("shared-cores")


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The default settings, with few slots."""
    return settings_module.from_args({"engine": {"slots": CLIP_SLOTS}}, environ={})


@pytest.fixture(scope="session")
def demo_model(settings: Settings) -> Model:
    """The demo model with eight slots. Tests leave no stream open; a new stream resets its slot."""
    return load_model(settings)


@pytest.fixture(scope="session")
def other_model(settings: Settings) -> Model:
    """A second copy of the demo model, for a second engine."""
    return load_model(settings)


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """The sample clips of less than a minute."""
    return [Clip(entry) for entry in manifest() if entry["words"][-1]["end"] < 60]


@pytest.fixture(scope="session")
def clip(clips: list[Clip]) -> Clip:
    """The clip of `make demo`."""
    return clips[0]


@pytest.fixture
async def engines(demo_model: Model) -> AsyncIterator[DirectEngines]:
    """The demo model as an engine."""
    async with running_engines(demo_model) as running:
        yield running
