"""One streaming session, seen from the client."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from serve_app.client.address import is_loopback, stream_url
from serve_app.client.errors import (
    ConnectionLost,
    ConnectionRefused,
    InvalidAddress,
    KeyRefused,
    ProtocolViolation,
    ServerError,
    ServerSilent,
)
from serve_app.client.events import Done, Event, Failure, Ping, parse

NORMAL_CLOSURE = 1000
AT_CAPACITY_CLOSURE = 1013

MAX_MESSAGE_BYTES = 2**20
"""Largest message accepted from a server."""

UNREAD_MESSAGES = 256
"""Messages buffered for a caller that does not read; after that TCP holds the server back."""


class Stream:
    """An open session: send audio, read events.

    Sending and reading are independent and usually happen in two tasks. Reading ends after `Done`; every other end
    of the session raises.
    """

    def __init__(self, connection: ClientConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._done = False

    async def send(self, samples: ArrayLike) -> None:
        """Send audio: float32, mono, 24 kHz, any number of samples.

        Raises `ServerSilent` where the server takes nothing for the timeout, `ConnectionLost`, and `ValueError` for
        samples of any other shape. What a server had to say before it went away is still there to be read.
        """
        array = np.asarray(samples, "<f4")
        if array.ndim != 1:
            raise ValueError(f"expected one dimension of samples, got {array.ndim}")
        await self._send(array.tobytes())

    async def flush(self) -> None:
        """Ask for everything said so far; `Flushed` tells when it is out, and the session goes on."""
        await self._send(json.dumps({"type": "flush"}))

    async def end(self) -> None:
        """Say that no audio comes any more: the rest of the text comes, then `Done`."""
        await self._send(json.dumps({"type": "end"}))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event.

        Raises `ServerError` for an error the server reports, `ProtocolViolation`, `ServerSilent` where not even a ping
        comes for the timeout, and `ConnectionLost` where the connection ends without `Done`.
        """
        if self._done:
            raise StopAsyncIteration
        while True:
            match parse(await self._receive()):
                case Ping():
                    continue
                case Failure(code=code, message=message, retry_after_s=retry_after_s):
                    raise ServerError(code, message, retry_after_s)
                case event:
                    self._done = isinstance(event, Done)
                    return event

    async def _send(self, message: str | bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connection.send(message)
        except TimeoutError:
            raise ServerSilent(f"the server took no audio for {self._timeout_s:g} s") from None
        except ConnectionClosed as error:
            raise _lost(error) from None

    async def _receive(self) -> str | bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._connection.recv()
        except TimeoutError:
            raise ServerSilent(f"the server said nothing for {self._timeout_s:g} s") from None
        except UnicodeDecodeError:
            raise ProtocolViolation("expected a JSON message, got text that is not UTF-8") from None
        except ConnectionClosed as error:
            raise _lost(error) from None


@asynccontextmanager
async def connect(
    url: str,
    *,
    api_key: str | None = None,
    words: bool = False,
    open_timeout_s: float = 10.0,
    timeout_s: float = 30.0,
) -> AsyncGenerator[Stream]:
    """Open a session; leaving the block closes it, whatever its state.

    `url` is `ws://…`, `http://…` or `host:port`; without a path it means `/v1/stream`. With `words` the server also
    sends `Word` events. `timeout_s` bounds the wait for each message either way.

    Raises `InvalidAddress`, `ConnectionRefused`, `KeyRefused` and `ServerSilent`.
    """
    address = stream_url(url, words=words)
    try:
        connection = await open_websocket(
            address,
            additional_headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            proxy=None if is_loopback(address) else True,
            compression=None,  # audio does not compress, and tokens are too short to
            open_timeout=open_timeout_s,
            close_timeout=5,
            ping_interval=None,  # the server pings, and `timeout_s` notices when it stops
            max_size=MAX_MESSAGE_BYTES,
            max_queue=UNREAD_MESSAGES,
        )
    except TimeoutError:
        raise ServerSilent(f"{address}: no answer within {open_timeout_s:g} s") from None
    except InvalidURI as error:
        raise InvalidAddress(str(error)) from None
    except InvalidStatus as error:
        status = error.response.status_code
        if status in (401, 403):
            asked = "another API key" if api_key else "an API key"
            raise KeyRefused(f"{address}: the server asks for {asked} (HTTP {status})") from None
        raise ConnectionRefused(f"{address}: the server answered HTTP {status} instead of a WebSocket") from None
    except (OSError, WebSocketException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectionRefused(f"{address}: no connection ({reason})") from None
    async with connection:
        try:
            yield Stream(connection, timeout_s)
        except ServerSilent:
            connection.transport.abort()  # it would not answer a closing handshake either
            raise


def _lost(error: ConnectionClosed) -> ConnectionLost | ServerError:
    """What a close frame, or the lack of one, means."""
    if error.rcvd is None:
        return ConnectionLost("the connection broke off before the session was over")
    code, reason = error.rcvd.code, error.rcvd.reason
    if code == AT_CAPACITY_CLOSURE:
        return ServerError("at_capacity", reason or "the server is at capacity")
    if code == NORMAL_CLOSURE:
        return ConnectionLost("the server closed the connection before the session was over")
    return ConnectionLost(f"the server closed the connection: {reason or 'no reason given'} (code {code})")
