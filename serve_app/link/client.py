"""The ingress's side of the link: one connection to one engine, shared by all sessions that have a slot there."""

import asyncio
import contextvars
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import EngineLost, SpeechError, StepFailed
from serve_app.link.connection import Connection
from serve_app.link.messages import (
    Attach,
    Attached,
    Detach,
    Failed,
    Frames,
    Grant,
    LinkError,
    LoadReport,
    Message,
    Ping,
    Refused,
)
from serve_app.settings import LinkSettings
from serve_app.speech import FrameResult, FrameResults
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

MAX_ROWS = 512
"""Frames per message (4 MB), well under the peer's limit."""


class StreamListener(Protocol):
    """Who wants to hear of a stream."""

    def on_result(self, result: FrameResult) -> None:
        """The next frame's result, in order."""

    def on_draining(self) -> None:
        """The engine is being stopped: leave it soon."""

    def on_lost(self, error: SpeechError) -> None:
        """The stream is over before it was closed; nothing follows."""


class LinkClient:
    """A connection to one engine replica. All methods run in the event loop that opened it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: LinkSettings, name: str
    ) -> None:
        """Use `connect`."""
        self.name = name
        self.load: dict[str, float] = {}
        """The engine's latest load report, see `serve_app.engine.batcher.Load`."""
        self._settings = settings
        self._listeners: dict[int, StreamListener] = {}
        self._attaching: dict[int, asyncio.Future[bool]] = {}
        self._frames: list[tuple[int, NDArray[np.float32]]] = []
        self._connection = Connection(
            reader,
            writer,
            settings,
            on_message=self._on_message,
            heartbeat=Ping,
            before_write=self._take_frames,
        )
        # A context of its own: the session that happens to make the link must not sign the log lines of all others.
        self._running = asyncio.create_task(self._run(), name=f"link-to-{name}", context=contextvars.Context())

    @classmethod
    async def connect(cls, host: str, port: int, settings: LinkSettings, *, name: str) -> "LinkClient":
        """Connect to an engine; `name` is for logs and metrics. Raises EngineLost if it does not answer in time."""
        try:
            async with asyncio.timeout(settings.timeout_seconds):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise EngineLost(f"engine {name} does not accept connections: {error!r}") from error
        return cls(reader, writer, settings, name)

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return not self._running.done()

    async def attach(self, grant: Grant, listener: StreamListener) -> None:
        """Take over a granted stream; its results go to `listener`. Raises EngineLost if that fails."""
        if not self.is_open:
            raise EngineLost(f"the connection to engine {self.name} ended")
        answer = self._attaching[grant.stream] = asyncio.get_running_loop().create_future()
        self._listeners[grant.stream] = listener
        try:
            self._connection.send(Attach(grant.stream, grant.secret))
            async with asyncio.timeout(self._settings.timeout_seconds):
                accepted = await answer
        except TimeoutError:
            accepted = False
        except BaseException:  # cancelled: nobody listens any more
            self.detach(grant.stream)
            raise
        finally:
            self._attaching.pop(grant.stream, None)
        if not accepted:
            self.detach(grant.stream)
            raise EngineLost(f"engine {self.name} did not hand over its stream")

    def send(self, stream: int, frames: NDArray[np.float32]) -> None:
        """Send frames, float32 [n, FRAME_SAMPLES]; the caller keeps within the window it was granted."""
        self._frames.append((stream, frames))
        self._connection.request_write()

    def announce_draining(self) -> None:
        """Tell every stream here that the engine is being stopped."""
        for stream, listener in list(self._listeners.items()):
            try:
                listener.on_draining()
            except Exception as error:
                self._drop(stream, listener, error)

    def detach(self, stream: int) -> None:
        """Hear no more of this stream, and have its lease end."""
        if self._listeners.pop(stream, None):
            self._connection.send(Detach(stream))

    async def close(self) -> None:
        """End the connection; streams that are still attached are lost."""
        self._connection.abort()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            await self._connection.run()
        finally:
            for answer in self._attaching.values():
                if not answer.done():
                    answer.set_result(False)
            listeners, self._listeners = self._listeners, {}
            for listener in listeners.values():
                _tell_lost(listener, EngineLost(f"the connection to engine {self.name} ended"))

    def _take_frames(self) -> list[Message]:
        collected, self._frames = self._frames, []
        if not collected:
            return []
        streams = np.concatenate([np.full(len(frames), stream, dtype=np.int64) for stream, frames in collected])
        audio = np.concatenate([frames for _, frames in collected])
        return [
            Frames(streams[start : start + MAX_ROWS], audio[start : start + MAX_ROWS])
            for start in range(0, len(streams), MAX_ROWS)
        ]

    def _on_message(self, message: Message) -> None:
        match message:
            case FrameResults():
                self._deliver(message)
            case LoadReport(values):
                self.load = values
            case Attached(stream) | Refused(stream):
                answer = self._attaching.get(stream)
                if answer and not answer.done():
                    answer.set_result(isinstance(message, Attached))
            case Failed(streams, _, text):
                for stream in streams:
                    if listener := self._listeners.pop(stream, None):
                        _tell_lost(listener, StepFailed(text))
            case other:
                raise LinkError(f"expected results, load, attached, refused or failed, got {type(other).__name__}")

    def _deliver(self, results: FrameResults) -> None:
        columns = zip(
            results.streams.tolist(), results.frames.tolist(), results.tokens.tolist(), results.pauses.tolist(),
            results.codes, results.engine_seconds.tolist(), results.probabilities.tolist(), strict=True,
        )  # fmt: skip
        for stream, frame, token, pauses, codes, engine_seconds, probability in columns:
            if listener := self._listeners.get(stream):
                try:
                    listener.on_result(FrameResult(frame, token, tuple(pauses), codes, engine_seconds, probability))
                except Exception as error:  # whatever one session makes of it, the others share this link
                    self._drop(stream, listener, error)

    def _drop(self, stream: int, listener: StreamListener, error: Exception) -> None:
        """End the one stream whose listener failed."""
        _log.error("listener failed", engine=self.name, stream=stream, error=repr(error), exc_info=error)
        self.detach(stream)
        _tell_lost(listener, EngineLost(f"what engine {self.name} sent could not be used"))


def _tell_lost(listener: StreamListener, error: SpeechError) -> None:
    try:
        listener.on_lost(error)
    except Exception as failure:
        _log.error("listener failed at the loss of its stream", error=repr(failure), exc_info=failure)
