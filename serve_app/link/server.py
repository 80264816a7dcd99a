"""The engine's side of the link: checks who may use which stream, feeds the batcher, hands results out."""

import asyncio
import dataclasses
import secrets
from collections.abc import Callable
from typing import Literal

import numpy as np
from prometheus_client import CollectorRegistry

from serve_app.errors import SpeechError
from serve_app.link.connection import Connection
from serve_app.link.messages import (
    SECRET_BYTES,
    Attach,
    Attached,
    Detach,
    Failed,
    Frames,
    LinkError,
    LoadReport,
    Message,
    Ping,
    Refused,
)
from serve_app.settings import LinkSettings
from serve_app.speech import FrameResults
from serve_app.telemetry import EngineMetrics, get_logger

_log = get_logger(__name__)

MAX_STRANGERS = 64
"""Connections that have not attached anything yet; one more pushes the oldest out. An ingress attaches at once."""

MAX_STRANGER_GUESSES = 8
"""Wrong attaches of such a connection. Even a right ingress has one, when its lease ends in the wrong moment."""


class LinkServer:
    """Accepts ingress replicas. All methods run in the event loop that started it.

    A stream is first *granted* (a secret is made for it), then *attached* by the connection that shows the secret;
    from then on frames for it are taken from that connection only, and its results go there.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        on_frames: Callable[[int, np.ndarray], bool],
        on_detached: Callable[[int], None],
        load: Callable[[], dict[str, float]],
        metrics: EngineMetrics | None = None,
    ) -> None:
        """`on_frames(stream, frames)` answers whether they fit.

        `on_detached(stream)` says that its ingress is done with it, or gone.
        """
        self._settings = settings
        self._on_frames = on_frames
        self._on_detached = on_detached
        self._load = load
        self._metrics = metrics or EngineMetrics(CollectorRegistry())
        self._secrets: dict[int, bytes] = {}
        self._owners: dict[int, _Ingress] = {}
        self._strangers: dict[_Ingress, None] = {}  # the oldest first
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen on host and port (0: any free one); returns the port."""
        self._server = await asyncio.start_server(self._serve, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server:
            self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def grant(self, stream: int) -> bytes:
        """Make the secret that attaches a connection to this stream, once."""
        self._secrets[stream] = secrets.token_bytes(SECRET_BYTES)
        return self._secrets[stream]

    def forget(self, stream: int) -> None:
        """The stream is over; nothing is sent about it any more."""
        self._secrets.pop(stream, None)
        if ingress := self._owners.pop(stream, None):
            ingress.streams.discard(stream)

    def is_attached(self, stream: int) -> bool:
        """Whether an ingress holds the stream."""
        return stream in self._owners

    def send_results(self, results: FrameResults) -> None:
        """Hand the rows of a step to the connections that own their streams."""
        rows: dict[_Ingress, list[int]] = {}
        for row, stream in enumerate(results.streams.tolist()):
            if ingress := self._owners.get(stream):
                rows.setdefault(ingress, []).append(row)
        for ingress, mine in rows.items():
            ingress.collect(results if len(mine) == len(results.streams) else _select(results, mine))

    def send_failure(self, streams: list[int], error: SpeechError) -> None:
        """Tell the owners of these streams that they are over, and forget them."""
        for stream in streams:
            if ingress := self._owners.get(stream):
                ingress.connection.send(Failed([stream], error.code, error.message))
            self.forget(stream)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._metrics.links.set(len(self._serving))
        ingress = _Ingress(self, reader, writer, self._settings)
        self._strangers[ingress] = None
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            _log.warning("link peer pushed out by newer ones", peer=oldest.connection.peer, strangers=MAX_STRANGERS)
            self._strangers.pop(oldest)
            oldest.connection.abort()
        try:
            await ingress.connection.run()
        except asyncio.CancelledError:
            pass  # `stop`: asyncio's server would log a cancelled handler as an error
        finally:
            self._serving.discard(task)
            self._metrics.links.set(len(self._serving))
            self._strangers.pop(ingress, None)
            for stream in list(ingress.streams):
                self.forget(stream)
                self._on_detached(stream)

    def _attach(self, ingress: "_Ingress", message: Attach) -> None:
        expected = self._secrets.get(message.stream)
        if expected is None or not secrets.compare_digest(expected, message.secret):
            _log.warning("link attach refused", peer=ingress.connection.peer, stream=message.stream)
            ingress.guesses += 1
            if not ingress.connection.is_trusted and ingress.guesses > MAX_STRANGER_GUESSES:
                raise LinkError(f"expected an attach with the right secret, got {ingress.guesses} wrong ones")
            ingress.connection.send(Refused(message.stream))
            return
        del self._secrets[message.stream]  # it works once; a wrong guess leaves it to the one who holds it
        self._strangers.pop(ingress, None)
        ingress.connection.trust()
        self._owners[message.stream] = ingress
        ingress.streams.add(message.stream)
        ingress.connection.send(Attached(message.stream))

    def _detach(self, ingress: "_Ingress", stream: int) -> None:
        if stream in ingress.streams:  # else it is over already, or never was this connection's
            self.forget(stream)
            self._on_detached(stream)

    def _feed(self, ingress: "_Ingress", message: Frames) -> None:
        order = np.argsort(message.streams, kind="stable")
        streams, starts = np.unique(message.streams[order], return_index=True)
        for stream, rows in zip(streams.tolist(), np.split(order, starts[1:]), strict=False):
            if stream not in ingress.streams:
                continue  # closed meanwhile, or never this connection's: either way not to be heard
            if not self._on_frames(stream, message.audio[rows]):
                raise LinkError(f"stream {stream}: expected frames within the window, got {len(rows)} more")

    def _on_message(self, ingress: "_Ingress", message: Message) -> None:
        match message:
            case Frames():
                self._feed(ingress, message)
            case Attach():
                self._attach(ingress, message)
            case Detach(stream):
                self._detach(ingress, stream)
            case Ping():
                pass
            case other:
                raise LinkError(f"expected attach, detach, frames or ping, got {type(other).__name__}")

    def _count_bytes(self, direction: Literal["in", "out"], count: int) -> None:
        self._metrics.link_bytes_total.labels(direction).inc(count)

    def _load_report(self) -> LoadReport:
        return LoadReport(self._load())


class _Ingress:
    """One connected ingress replica."""

    def __init__(
        self, server: LinkServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: LinkSettings
    ) -> None:
        self.streams: set[int] = set()
        self.guesses = 0
        self._collected: list[FrameResults] = []
        self.connection = Connection(
            reader,
            writer,
            settings,
            on_message=lambda message: server._on_message(self, message),
            heartbeat=server._load_report,
            before_write=self._take_collected,
            trusted=False,
            count_bytes=server._count_bytes,
        )

    def collect(self, results: FrameResults) -> None:
        self._collected.append(results)
        self.connection.request_write()

    def _take_collected(self) -> list[Message]:
        collected, self._collected = self._collected, []
        if len(collected) == 1:
            return [collected[0]]
        columns = zip(*(_columns(results) for results in collected), strict=True)
        return [FrameResults(*(np.concatenate(column) for column in columns))]


def _select(results: FrameResults, rows: list[int]) -> FrameResults:
    return FrameResults(*(column[rows] for column in _columns(results)))


def _columns(results: FrameResults) -> tuple[np.ndarray, ...]:
    return tuple(getattr(results, field.name) for field in dataclasses.fields(results))
