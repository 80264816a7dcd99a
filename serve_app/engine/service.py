"""One engine: a model's batcher behind a link server, and the leases on its slots. Runs with or without Ray."""

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from serve_app.engine.batcher import Batcher, Model
from serve_app.errors import SpeechError
from serve_app.link.messages import Grant
from serve_app.link.server import LinkServer
from serve_app.settings import EngineSettings, LinkSettings
from serve_app.speech import FrameResults, History, ModelInfo
from serve_app.telemetry import EngineMetrics, get_logger

_log = get_logger(__name__)


class Lease:
    """The right to one slot; see `EngineService.lease`."""

    def __init__(self, grant: Grant, ended: "asyncio.Future[None]") -> None:
        self.grant = grant
        """What the ingress needs to attach to the stream."""
        self._ended = ended

    async def wait_ended(self) -> None:
        """Return when the stream is over on the engine's side: its ingress is gone, or the model failed on it."""
        await self._ended


class EngineService:
    """Serves one model to any number of ingress replicas. Start and use it in one event loop."""

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        engine: EngineSettings,
        link: LinkSettings,
        metrics: EngineMetrics | None = None,
    ) -> None:
        """`metrics` are those of the process, for an engine that has one to itself."""
        self.name = name
        self.metrics = metrics or EngineMetrics(CollectorRegistry())
        """What this engine counts."""
        self._link_settings = link
        self._batcher = Batcher(
            model,
            on_results=self._hand_over,
            on_failure=self._hand_over_failure,
            settings=engine,
            metrics=self.metrics,
        )
        self.metrics.watch_load(self.load)
        self._link = LinkServer(
            self._link_settings,
            on_frames=self._batcher.feed,
            on_detached=self._end_lease,
            load=self.load,
            metrics=self.metrics,
        )
        self._leases: dict[int, asyncio.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host = ""
        self._port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Start the step loop and listen on host and port (0: any free one)."""
        self._loop = asyncio.get_running_loop()
        self._host, self._port = host, await self._link.start(host, port)
        self._batcher.start()
        _log.info("engine started", engine=self.name, host=host, port=self._port)

    async def stop(self) -> None:
        """Drop every connection, end every lease, stop the step loop."""
        await self._link.stop()
        for stream in list(self._leases):
            self._end_lease(stream)
        await asyncio.to_thread(self._batcher.stop)

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._batcher.info

    def load(self) -> dict[str, float]:
        """How busy the engine is: the fields of `serve_app.engine.batcher.Load`."""
        return dataclasses.asdict(self._batcher.load())

    def check_health(self) -> None:
        """Raise the error that broke the step loop, if it is broken."""
        if self._batcher.broken:
            raise self._batcher.broken

    @contextmanager
    def lease(self, history: History | None = None) -> Iterator[Lease]:
        """Hold a slot for the length of the `with` block. Raises AtCapacity if there is none.

        A lease whose grant nobody attaches within the link's timeout ends by itself.
        """
        loop = asyncio.get_running_loop()
        stream = self._batcher.open(history)
        ended = self._leases[stream] = loop.create_future()
        secret = self._link.grant(stream)
        attach_by = loop.call_later(self._link_settings.timeout_seconds, self._end_unattached, stream)
        try:
            yield Lease(Grant(self.name, self._host, self._port, stream, secret), ended)
        finally:
            attach_by.cancel()
            self._end_lease(stream)
            self._link.forget(stream)
            self._batcher.close(stream)

    def _end_unattached(self, stream: int) -> None:
        if not self._link.is_attached(stream):
            _log.warning("lease never attached", engine=self.name, stream=stream)
            self._link.forget(stream)  # its secret is good for nothing from now on
            self._end_lease(stream)

    def _end_lease(self, stream: int) -> None:
        ended = self._leases.pop(stream, None)
        if ended and not ended.done():
            ended.set_result(None)

    # The batcher's thread calls these two.

    def _hand_over(self, results: FrameResults) -> None:
        self._call_soon(self._link.send_results, results)

    def _hand_over_failure(self, streams: list[int], error: SpeechError) -> None:
        self._call_soon(self._fail_streams, streams, error)

    def _fail_streams(self, streams: list[int], error: SpeechError) -> None:
        self._link.send_failure(streams, error)
        for stream in streams:
            self._end_lease(stream)

    def _call_soon(self, *call: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(*call)  # type: ignore[arg-type]
        except RuntimeError:  # the loop has closed: the process is shutting down
            _log.debug("result after the end", engine=self.name)
