"""Running parts for tests: sample clips, engines without Ray, an ingress without Ray. All of them real."""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import uvicorn
import websockets
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection

from serve_app import settings as settings_module
from serve_app.audio.files import read_audio
from serve_app.engine.batcher import Model
from serve_app.engine.service import EngineService, Lease
from serve_app.errors import AtCapacity, EngineLost, ModelNotReady, SpeechError
from serve_app.ingress.http_server import BoundedConfig
from serve_app.ingress.routes import Ingress
from serve_app.link.client import LinkClient, StreamListener
from serve_app.session.admission import Admission, Returning
from serve_app.session.models import ServedModel
from serve_app.session.vault import Answer, Checkpoint, Saved, Vault, VaultUnavailable
from serve_app.settings import EngineSettings, LinkSettings, ModelSettings
from serve_app.speech import FRAME_SAMPLES, FrameResult, History, ModelInfo
from serve_app.telemetry import IngressMetrics
from serve_app.telemetry.board import ENGINE, INGRESS, Board, BoardUnavailable, Report, Source
from serve_app.telemetry.publisher import Publisher

PROJECT = Path(__file__).parent.parent
SAMPLES = PROJECT / "configs" / "samples"


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


class _LeasedStream:
    def __init__(self, link: LinkClient, lease: Lease, closing: Iterator[None], leased: "set[_LeasedStream]") -> None:
        self._leased = leased
        self._link = link
        self._stream = lease.grant.stream
        self._closing = closing

    def send(self, frames: NDArray[np.float32]) -> None:
        self._link.send(self._stream, frames)

    def close(self) -> None:
        self._leased.discard(self)
        self._link.detach(self._stream)
        next(self._closing, None)


class _Nobody:
    """Listens to a stream only to open a link."""

    def on_result(self, result: FrameResult) -> None:
        pass

    def on_draining(self) -> None:
        pass

    def on_lost(self, error: SpeechError) -> None:
        pass


class DirectEngines:
    """Engines in this process, each behind a real link: `ServeEngines` without Ray. The first with room wins."""

    def __init__(self, engines: list[tuple[EngineService, LinkClient]]) -> None:
        self.engines = engines
        self.service, self.link = engines[0]
        self.is_ready = True
        self.can_grow = False
        self.is_full = False
        self.leased: set[_LeasedStream] = set()
        self.known = asyncio.Event()
        self.known.set()

    @property
    def info(self) -> ModelInfo:
        if not self.known.is_set():
            raise ModelNotReady("no engine has loaded its model yet")
        return self.service.info

    @property
    def leases(self) -> int:
        return len(self.leased)

    def loads(self) -> dict[str, dict[str, float]]:
        return {link.name: link.load for _, link in self.engines}

    async def wait_until_known(self) -> None:
        await self.known.wait()

    def sleep(self) -> None:
        """Be as engines are of which none has been seen yet."""
        self.is_ready = False
        self.known.clear()

    def wake(self) -> None:
        self.is_ready = True
        self.known.set()

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def open(
        self, session_id: str, listener: StreamListener, history: History | None = None, *, patient: bool = True
    ) -> _LeasedStream:
        error: SpeechError = EngineLost("no engine is there")
        for service, link in self.engines:
            leases: list[Lease] = []
            closing = self._hold(service, leases, history)
            try:
                next(closing)
                await link.attach(leases[0].grant, listener)
            except (AtCapacity, EngineLost) as why:
                error = why
                next(closing, None)
                continue
            except asyncio.CancelledError:
                next(closing, None)
                raise
            stream = _LeasedStream(link, leases[0], closing, self.leased)
            self.leased.add(stream)
            return stream
        raise error

    @staticmethod
    def _hold(service: EngineService, leases: list[Lease], history: History | None) -> Iterator[None]:
        with service.lease(history) as lease:
            leases.append(lease)
            yield

    async def kill(self, number: int) -> None:
        """Lose an engine without a word, as when its process dies."""
        _, link = self.engines.pop(number)
        await link.close()

    def slots_used(self) -> int:
        return int(sum(service.load()["slots_used"] for service, _ in self.engines))


@asynccontextmanager
async def running_engines(
    *models: Model, engine: EngineSettings | None = None, link: LinkSettings | None = None
) -> AsyncIterator[DirectEngines]:
    """One engine for each model, and links to them.

    Without settings of their own they take sessions however little headroom a busy machine leaves.
    """
    engine = engine or EngineSettings().model_copy(update={"min_headroom": -math.inf})
    link = link or LinkSettings()
    engines: list[tuple[EngineService, LinkClient]] = []
    try:
        for number, model in enumerate(models, 1):
            name = f"engine-{number}"
            service = EngineService(model, name=name, engine=engine, link=link)
            await service.start("127.0.0.1")
            with service.lease() as lease:  # an engine drops a link over which nothing is attached soon
                client = await LinkClient.connect(lease.grant.host, lease.grant.port, link, name=name)
                await client.attach(lease.grant, _Nobody())
                client.detach(lease.grant.stream)
            engines.append((service, client))
        started = list(engines)
        yield DirectEngines(engines)
    finally:
        for service, client in started:
            await client.close()
            await service.stop()


class LocalVault:
    """A vault in this process; it can be cut off."""

    def __init__(self, keep_seconds: float, capacity_bytes: int = 2**30) -> None:
        self.vault = Vault(keep_seconds, capacity_bytes)
        self.available = True

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        self._check()
        return self.vault.save(checkpoints, unchanged, over)

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        self._check()
        return self.vault.take(token, owner, hold)

    def _check(self) -> None:
        if not self.available:
            raise VaultUnavailable("nobody answers")


class LocalBoard:
    """A board in this process, to which engines in this process post whenever it is read; it can be cut off."""

    def __init__(self, engines: DirectEngines) -> None:
        self.board = Board()
        self.available = True
        self._engines = engines

    async def post(self, report: Report) -> None:
        self._check()
        self.board.post(report)

    async def leave(self, source: Source) -> None:
        self._check()
        self.board.leave(source)

    async def exchange(self, report: Report) -> list[Report]:
        self._check()
        for service, _ in self._engines.engines:
            self.board.post(Report(Source(ENGINE, service.name), tuple(service.metrics.registry.collect())))
        return self.board.exchange(report)

    def _check(self) -> None:
        if not self.available:
            raise BoardUnavailable("nobody answers")


class Service:
    """A running ingress."""

    def __init__(
        self, port: int, engines: DirectEngines, metrics: IngressMetrics, ingress: Ingress, board: LocalBoard
    ) -> None:
        self.port = port
        self.board = board
        self.ingress = ingress
        self.engines = engines
        self.metrics = metrics

    @property
    def url(self) -> str:
        return self.at("/v1/stream")

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def at(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def outcomes(self, code: str) -> float:
        samples = next(family for family in self.metrics.sessions_total.collect()).samples
        return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["outcome"] == code)

    async def wait_until_empty(self) -> None:
        """Every slot is free again, and no session open."""
        async with asyncio.timeout(10):
            while self.engines.slots_used() or len(self.ingress.sessions):
                await asyncio.sleep(0.01)


async def answers_until_close(connection: ClientConnection) -> list[str | bytes]:
    """Every message that comes until the server closes."""
    messages: list[str | bytes] = []
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            async with asyncio.timeout(30):
                messages.append(await connection.recv())
    return messages


def served(engines: DirectEngines, **facts) -> ServedModel:
    """The engines as those of a model, for sessions that need no ingress."""
    returning = Returning()
    line = Admission(16, returning)
    return ServedModel("demo", ModelSettings(source="demo", **facts), engines, returning, line)


@asynccontextmanager
async def serving(
    engines: DirectEngines,
    vault: LocalVault | None = None,
    further: Sequence[DirectEngines] = (),
    port: int = 0,
    **args,
) -> AsyncIterator[Service]:
    """An ingress on this port of 127.0.0.1 (0: any that is free); `further` are engines of `args["models"]`."""
    settings = settings_module.from_args(args, environ={})
    vault = vault or LocalVault(settings.session.resume_window_seconds)
    metrics = IngressMetrics(CollectorRegistry())
    board = LocalBoard(engines)
    publisher = Publisher(Source(INGRESS, "ingress-1"), metrics.registry, board)
    pools = dict(zip(settings.served, (engines, *further), strict=True))
    ingress = Ingress(settings, pools, vault, metrics, publisher)
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(BoundedConfig(ingress.application(), log_level="warning", lifespan="on"))
    running = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield Service(listener.getsockname()[1], engines, metrics, ingress, board)
    finally:
        server.should_exit = True
        await running
