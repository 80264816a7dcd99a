"""What tests of several modules share: the demo model, and engines without Ray."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray

from serve_app import settings as settings_module
from serve_app.audio.files import read_audio
from serve_app.engine.batcher import Model
from serve_app.engine.loading import load_model
from serve_app.engine.service import EngineService, Lease
from serve_app.link.client import LinkClient, StreamListener
from serve_app.settings import EngineSettings, LinkSettings, Settings
from serve_app.speech import FRAME_SAMPLES, ModelInfo

PROJECT = Path(__file__).parent.parent
SAMPLES = PROJECT / "configs" / "samples"
CLIP_SLOTS = 8

# Two slow cores shared with an engine: how long an example takes to draw or to run says nothing about the code.
hypothesis_settings.register_profile("shared-cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
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


class Clip:
    """A sample clip with its reference."""

    def __init__(self, entry: dict) -> None:
        self.path = SAMPLES / entry["file"]
        self.words = [word["text"] for word in entry["words"]]
        self.times = [(word["start"], word["end"]) for word in entry["words"]]
        self.language = entry["language"]

    @property
    def samples(self) -> NDArray[np.float32]:
        """The audio, float32 [n] at 24 kHz."""
        return read_audio(self.path)

    @property
    def frames(self) -> NDArray[np.float32]:
        """The audio with two seconds of silence behind it, float32 [n, FRAME_SAMPLES]."""
        samples = self.samples
        padded = np.pad(samples, (0, 48_000 + -(len(samples) + 48_000) % FRAME_SAMPLES))
        return padded.reshape(-1, FRAME_SAMPLES)


def manifest() -> list[dict]:
    return json.loads((SAMPLES / "manifest.json").read_text())


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """The sample clips of less than a minute."""
    return [Clip(entry) for entry in manifest() if entry["words"][-1]["end"] < 60]


@pytest.fixture(scope="session")
def clip(clips: list[Clip]) -> Clip:
    """The clip of `make demo`."""
    return clips[0]


class _LeasedStream:
    def __init__(self, link: LinkClient, lease: Lease, closing: Iterator[None]) -> None:
        self._link = link
        self._stream = lease.grant.stream
        self._closing = closing

    def send(self, frames: NDArray[np.float32]) -> None:
        self._link.send(self._stream, frames)

    async def close(self) -> None:
        self._link.detach(self._stream)
        next(self._closing, None)


class DirectEngines:
    """One engine in this process, behind a real link: what `ServeEngines` is, without Ray."""

    def __init__(self, service: EngineService, link: LinkClient) -> None:
        self.service = service
        self.link = link
        self.is_ready = True

    @property
    def info(self) -> ModelInfo:
        return self.service.info

    def loads(self) -> dict[str, dict[str, float]]:
        return {self.link.name: self.link.load}

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def open(self, session_id: str, listener: StreamListener) -> _LeasedStream:
        leases: list[Lease] = []
        closing = self._hold(leases)
        next(closing)
        await self.link.attach(leases[0].grant, listener)
        return _LeasedStream(self.link, leases[0], closing)

    def _hold(self, leases: list[Lease]) -> Iterator[None]:
        with self.service.lease() as lease:
            leases.append(lease)
            yield

    def slots_used(self) -> int:
        return int(self.service.load()["slots_used"])


@asynccontextmanager
async def running_engines(
    model: Model, engine: EngineSettings | None = None, link: LinkSettings | None = None
) -> AsyncIterator[DirectEngines]:
    """An engine that serves `model`, and a link to it."""
    link = link or LinkSettings()
    service = EngineService(model, name="engine-1", engine=engine or EngineSettings(), link=link)
    await service.start("127.0.0.1")
    with service.lease() as lease:
        host, port = lease.grant.host, lease.grant.port
    client = await LinkClient.connect(host, port, link, name="engine-1")
    try:
        yield DirectEngines(service, client)
    finally:
        await client.close()
        await service.stop()


@pytest.fixture
async def engines(demo_model: Model) -> AsyncIterator[DirectEngines]:
    """The demo model as an engine."""
    async with running_engines(demo_model) as running:
        yield running
