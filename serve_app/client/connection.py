"""Opens WebSocket connections to a service, and says what it means when that fails or they end."""

import asyncio
from collections.abc import Mapping

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from serve_app.client.address import is_loopback, shown
from serve_app.client.errors import (
    ConnectionLost,
    ConnectionRefused,
    InvalidAddress,
    KeyRefused,
    ServerError,
    ServerSilent,
)

NORMAL_CLOSURE = 1000
AT_CAPACITY_CLOSURE = 1013

RESUMABLE_CLOSURES = (1001, 1005, 1006, 1012)
"""Close codes of a server that goes away or restarts."""

CLOSE_TIMEOUT_S = 2.0
"""How long a server may take to answer a close frame."""

MAX_MESSAGE_BYTES = 2**20
"""Largest message accepted from a server."""

UNREAD_MESSAGES = 256
"""Messages buffered for a caller that does not read; after that TCP holds the server back."""


async def open_connection(
    address: str, api_key: str | None, open_timeout_s: float, headers: Mapping[str, str] | None = None
) -> ClientConnection:
    """Open a connection. Raises `InvalidAddress`, `ConnectionRefused`, `KeyRefused` and `ServerSilent`."""
    name = shown(address)
    try:
        return await open_websocket(
            address,
            additional_headers={**(headers or {}), **({"Authorization": f"Bearer {api_key}"} if api_key else {})},
            proxy=None if is_loopback(address) else True,
            compression=None,  # audio does not compress, and tokens are too short to
            open_timeout=open_timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,  # the server pings, and `timeout_s` notices when it stops
            max_size=MAX_MESSAGE_BYTES,
            max_queue=UNREAD_MESSAGES,
        )
    except TimeoutError:
        raise ServerSilent(f"{name}: no answer within {open_timeout_s:g} s") from None
    except InvalidURI as error:
        raise InvalidAddress(f"{name} is not an address ({error.msg})") from None
    except InvalidStatus as error:
        status = error.response.status_code
        if status in (401, 403):
            asked = "another API key" if api_key or headers else "an API key"
            # Many servers answer 403 for a path they do not know, too; one that asks for a key may say so in a header.
            certain = status == 401 or "WWW-Authenticate" in error.response.headers
            otherwise = "" if certain else ", or the path is wrong"
            raise KeyRefused(f"{name}: the server asks for {asked}{otherwise} (HTTP {status})") from None
        raise ConnectionRefused(f"{name}: the server answered HTTP {status} instead of a WebSocket") from None
    except UnicodeError as error:
        raise InvalidAddress(f"{name}: expected the name of a host ({error})") from None
    except (OSError, WebSocketException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectionRefused(f"{name}: no connection ({reason})") from None


async def close_connection(connection: ClientConnection) -> None:
    """Close it, or cut it off if the server does not take the farewell: the library alone waits for minutes."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except TimeoutError:
        connection.transport.abort()


def may_resume(error: ConnectionClosed) -> bool:
    """Whether the server may still hold the session: it did not close on purpose, or is being restarted."""
    if error.rcvd is None:
        return error.sent is None  # it broke off; else we have closed it, because it made no sense
    return error.rcvd.code in RESUMABLE_CLOSURES


def what_it_means(error: ConnectionClosed) -> ConnectionLost | ServerError:
    """The error that a close frame, or the lack of one, stands for."""
    if error.rcvd is None:
        return ConnectionLost("the connection broke off before the session was over")
    code, reason = error.rcvd.code, error.rcvd.reason
    if code == AT_CAPACITY_CLOSURE:
        return ServerError("at_capacity", reason or "the server is at capacity")
    if code == NORMAL_CLOSURE:
        return ConnectionLost("the server closed the connection before the session was over")
    return ConnectionLost(f"the server closed the connection: {reason or 'no reason given'} (code {code})")
