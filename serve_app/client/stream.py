"""One streaming session, seen from the client."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol, Self
from urllib.parse import urlencode

import numpy as np
from numpy.typing import ArrayLike, NDArray
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
from serve_app.client.events import Done, Event, Failure, Flushed, Ping, Ready, Token, TurnEnd, Word, parse
from serve_app.client.send_buffer import Control, SendBuffer

NORMAL_CLOSURE = 1000
AT_CAPACITY_CLOSURE = 1013

RESUMABLE_CLOSURES = (1001, 1005, 1006, 1012)
"""Close codes of a server that goes away or restarts."""

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0

MAX_MESSAGE_BYTES = 2**20
"""Largest message accepted from a server."""

UNREAD_MESSAGES = 256
"""Messages buffered for a caller that does not read; after that TCP holds the server back."""


class Stream:
    """An open session: send audio, read events.

    Sending and reading are independent and usually happen in two tasks. Reading ends after `Done`; every other end
    of the session raises. A connection that breaks is made again, and the session goes on where it was: what the server
    has not taken is sent again, what was not read comes again, nothing comes twice.
    """

    def __init__(self, connection: ClientConnection, reconnect: "Reconnect", timeout_s: float, resume_s: float) -> None:
        self._connection = connection
        self._reconnect = reconnect
        self._timeout_s = timeout_s
        self._resume_s = resume_s
        self._sent = SendBuffer()
        self._resume_token: str | None = None
        self._last_seq = 0
        self._restoring = asyncio.Lock()
        self._done = False
        self.reconnects = 0
        """How often the connection was made again."""

    async def send(self, samples: ArrayLike) -> None:
        """Send audio: float32, mono, 24 kHz, any number of samples.

        Raises `ServerSilent` where the server takes nothing for the timeout, `ConnectionLost`, and `ValueError` for
        samples of any other shape. What a server had to say before it went away is still there to be read.
        """
        array = np.asarray(samples, "<f4")
        if array.ndim != 1:
            raise ValueError(f"expected one dimension of samples, got {array.ndim}")
        await self._send(array)

    async def flush(self) -> None:
        """Ask for everything said so far; `Flushed` tells when it is out, and the session goes on."""
        await self._send("flush")

    async def end(self) -> None:
        """Say that no audio comes any more: the rest of the text comes, then `Done`."""
        await self._send("end")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event.

        Raises `ServerError` for an error the server reports, `ProtocolViolation`, `ServerSilent` where not even a ping
        comes for the timeout, and `ConnectionLost` where the connection ends without `Done` and cannot be resumed.
        """
        if self._done:
            raise StopAsyncIteration
        while True:
            match parse(await self._receive()):
                case Ping():
                    continue
                case Failure(code=code, message=message, retry_after_s=retry_after_s):
                    raise ServerError(code, message, retry_after_s)
                case Ready(resume_token=resume_token) as ready:
                    self._resume_token = resume_token
                    return ready
                case Token() | Word() | TurnEnd() | Flushed() | Done() as event:
                    if event.seq is not None:
                        if event.seq <= self._last_seq:
                            continue
                        self._last_seq = event.seq
                    self._done = isinstance(event, Done)
                    return event
                case other:
                    return other

    async def close(self) -> None:
        """Close the connection; the session is over for the server too."""
        await self._connection.close()

    async def _send(self, what: NDArray[np.float32] | Control) -> None:
        self._sent.add(what)
        connection = self._connection
        try:
            await self._transmit(connection, what)
        except ConnectionClosed as error:
            await self._restore(connection, error)  # which sends it again

    async def _transmit(self, connection: ClientConnection, what: NDArray[np.float32] | Control) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.send(json.dumps({"type": what}) if isinstance(what, str) else what.tobytes())
        except TimeoutError:
            raise ServerSilent(f"the server took no audio for {self._timeout_s:g} s") from None

    async def _receive(self) -> str | bytes:
        while True:
            connection = self._connection
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await connection.recv()
            except TimeoutError:
                raise ServerSilent(f"the server said nothing for {self._timeout_s:g} s") from None
            except UnicodeDecodeError:
                raise ProtocolViolation("expected a JSON message, got text that is not UTF-8") from None
            except ConnectionClosed as error:
                await self._restore(connection, error)

    async def _restore(self, broken: ClientConnection, error: ConnectionClosed) -> None:
        """Make the connection again and send what the server lacks. Raises what `error` means where that is no use."""
        async with self._restoring:
            if self._connection is not broken:
                return  # the other task has done it
            if self._resume_token is None or self._done or not _may_resume(error):
                raise _lost(error) from None
            deadline = time.monotonic() + self._resume_s
            wait_s = FIRST_RETRY_S
            while True:
                try:
                    self._connection = await self._resume(self._resume_token, error)
                    self.reconnects += 1
                    return
                except (ConnectionRefused, ServerSilent, ConnectionClosed, TimeoutError):
                    if time.monotonic() + wait_s > deadline:
                        raise _lost(error) from None
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    async def _resume(self, resume_token: str, error: ConnectionClosed) -> ClientConnection:
        """One try: a new connection on which everything that the server lacked was sent."""
        connection = await self._reconnect(resume_token, self._last_seq)
        try:
            ready = parse(await asyncio.wait_for(connection.recv(), self._timeout_s))
            missing = None
            if isinstance(ready, Ready) and ready.received:
                self._resume_token = ready.resume_token  # the other one has done its work
                missing = self._sent.after(ready.received.samples, ready.received.flushes, ready.received.end)
            if missing is None:
                raise _lost(error)
            for what in missing:
                await self._transmit(connection, what)
        except BaseException:
            await connection.close()
            raise
        return connection


class Reconnect(Protocol):
    """Opens a connection that takes a session up again."""

    def __call__(self, resume_token: str, last_seq: int) -> Awaitable[ClientConnection]:
        """Raises what `connect` raises."""


@asynccontextmanager
async def connect(
    url: str,
    *,
    api_key: str | None = None,
    words: bool = False,
    open_timeout_s: float = 10.0,
    timeout_s: float = 30.0,
    resume_s: float = 60.0,
) -> AsyncGenerator[Stream]:
    """Open a session; leaving the block closes it, whatever its state.

    `url` is `ws://…`, `http://…` or `host:port`; without a path it means `/v1/stream`. With `words` the server also
    sends `Word` events. `timeout_s` bounds the wait for each message either way, `resume_s` the time spent on getting a
    broken connection back (0: none).

    Raises `InvalidAddress`, `ConnectionRefused`, `KeyRefused` and `ServerSilent`.
    """
    address = stream_url(url, words=words)

    async def reconnect(resume_token: str, last_seq: int) -> ClientConnection:
        query = urlencode({"resume": resume_token, "last_seq": last_seq})
        separator = "&" if "?" in address else "?"
        return await _open(f"{address}{separator}{query}", api_key, min(open_timeout_s, resume_s))

    stream = Stream(await _open(address, api_key, open_timeout_s), reconnect, timeout_s, resume_s)
    try:
        yield stream
    finally:
        await stream.close()


async def _open(address: str, api_key: str | None, open_timeout_s: float) -> ClientConnection:
    try:
        return await open_websocket(
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
            # Many servers answer 403 for a path they do not know, too; one that asks for a key may say so in a header.
            certain = status == 401 or "WWW-Authenticate" in error.response.headers
            otherwise = "" if certain else ", or the path is wrong"
            raise KeyRefused(f"{address}: the server asks for {asked}{otherwise} (HTTP {status})") from None
        raise ConnectionRefused(f"{address}: the server answered HTTP {status} instead of a WebSocket") from None
    except UnicodeError as error:
        raise InvalidAddress(f"{address}: expected the name of a host ({error})") from None
    except (OSError, WebSocketException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectionRefused(f"{address}: no connection ({reason})") from None


def _may_resume(error: ConnectionClosed) -> bool:
    """Whether the server may still hold the session: it did not close on purpose, or is being restarted."""
    return error.rcvd is None or error.rcvd.code in RESUMABLE_CLOSURES


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
