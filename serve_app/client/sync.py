"""The client without asyncio: the same calls, on an event loop of their own in the background.

Opening, sending and closing end within the timeouts given to `connect`; reading waits until the service says something,
unless told for how long. A stream may be used by several threads, such as one that sends and one that reads.
"""

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, contextmanager
from typing import ParamSpec, Self

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from numpy.typing import ArrayLike

from serve_app.client import stream as asynchronous
from serve_app.client.events import Event
from serve_app.client.transcribe import Arrival
from serve_app.client.transcribe import transcribe as transcribe_asynchronously

P = ParamSpec("P")


class Stream:
    """An open session: send audio, read events, as `client.Stream` says."""

    def __init__(self, portal: BlockingPortal, stream: asynchronous.Stream) -> None:
        self._portal = portal
        self._stream = stream

    @property
    def reconnects(self) -> int:
        """How often the connection was made again."""
        return self._stream.reconnects

    def send(self, samples: ArrayLike) -> None:
        """Send audio: float32, mono, 24 kHz, any number of samples."""
        self._portal.call(self._stream.send, samples)

    def flush(self) -> None:
        """Ask for everything said so far."""
        self._portal.call(self._stream.flush)

    def end(self) -> None:
        """Say that no audio comes any more."""
        self._portal.call(self._stream.end)

    def receive(self, timeout_s: float | None = None) -> Event:
        """Wait for the next event.

        Raises `TimeoutError`, after which it can be called again, and `EOFError` after `Done`.
        """
        return self._portal.call(self._receive, timeout_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            return self.receive()
        except EOFError:
            raise StopIteration from None

    async def _receive(self, timeout_s: float | None) -> Event:
        try:
            with anyio.fail_after(timeout_s):
                return await anext(self._stream)
        except StopAsyncIteration:  # which no coroutine may raise
            raise EOFError("the session is over") from None


def _blocking(
    connect: Callable[P, AbstractAsyncContextManager[asynchronous.Stream]],
) -> Callable[P, AbstractContextManager[Stream]]:
    @functools.wraps(connect)
    @contextmanager
    def opened(*args: P.args, **kwargs: P.kwargs) -> Generator[Stream]:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(connect(*args, **kwargs)) as stream,
        ):
            yield Stream(portal, stream)

    return opened


def _iterated(transcribe: Callable[P, AsyncGenerator[Arrival]]) -> Callable[P, Generator[Arrival]]:
    @functools.wraps(transcribe)
    def arrivals(*args: P.args, **kwargs: P.kwargs) -> Generator[Arrival]:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(aclosing(transcribe(*args, **kwargs))) as each,
        ):
            while (arrival := portal.call(anext, each, None)) is not None:
                yield arrival

    return arrivals


connect = _blocking(asynchronous.connect)
transcribe = _iterated(transcribe_asynchronously)
