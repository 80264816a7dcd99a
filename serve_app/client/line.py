"""A connection and the audio stream that began with it: typed messages both ways, each within a time limit."""

import asyncio
import json

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection

from serve_app.client.connection import close_connection
from serve_app.client.encoding import Encoder
from serve_app.client.errors import ProtocolViolation, ServerSilent
from serve_app.client.events import Event, Failure, Ping, parse
from serve_app.client.send_buffer import Control


class Line:
    """One of possibly several that a session takes, one after the other."""

    def __init__(self, connection: ClientConnection, encoder: Encoder, timeout_s: float) -> None:
        self._connection = connection
        self._encoder = encoder
        self._timeout_s = timeout_s

    async def send(self, what: NDArray[np.float32] | Control) -> None:
        """Send samples, float32 [n], or a control message. Raises `ConnectionClosed` and `ServerSilent`."""
        match what:
            case np.ndarray():
                audio = self._encoder.encode(what)
            case "end":
                audio = self._encoder.finish()
            case "flush":
                audio = b""
        try:
            async with asyncio.timeout(self._timeout_s):
                if audio:
                    await self._connection.send(audio)
                if isinstance(what, str):
                    await self._connection.send(json.dumps({"type": what}))
        except TimeoutError:
            raise ServerSilent(f"the server took no audio for {self._timeout_s:g} s") from None

    async def receive(self) -> Event | Ping | Failure:
        """Wait for the next message. Raises `ConnectionClosed`, `ServerSilent` and `ProtocolViolation`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return parse(await self._connection.recv())
        except TimeoutError:
            raise ServerSilent(f"the server said nothing for {self._timeout_s:g} s") from None
        except UnicodeDecodeError:
            raise ProtocolViolation("expected a JSON message, got text that is not UTF-8") from None

    async def close(self) -> None:
        """Close the connection."""
        await close_connection(self._connection)
