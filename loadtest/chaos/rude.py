"""Clients that do not behave."""

import asyncio
import json
import random
import socket
import time
from urllib.parse import urlsplit

import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection

from serve_app import client
from serve_app.speech import SAMPLE_RATE_HZ

FLUSH = json.dumps({"type": "flush"})
FLUSHES_PER_SECOND = 2500
"""Words would take hours to fill the buffers on the way (megabytes on one machine); each flush is answered as well."""

SMALL_BUFFER_BYTES = 4096
"""Receive buffer of a client that does not read, so that the server notices in seconds."""

SHORT_SESSION_TIMEOUT_SECONDS = 20.0

ANSWER_SECONDS = 20.0
"""How long the first answer may take, and a connection before it."""


async def read_slowly(url: str, seconds: float, read_every_s: float | None) -> None:
    """Ask for far more events than are read: one every `read_every_s` seconds, or none at all.

    Returns after `seconds`, or when the connection is cut. HAProxy keeps its side open while something is unread, so
    only the service can tell when it gave the session up.
    """
    address = urlsplit(url)
    with socket.socket() as endpoint:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        endpoint.setblocking(False)
        await asyncio.get_running_loop().sock_connect(endpoint, (address.hostname, address.port))
        connection = await websockets.connect(
            url, sock=endpoint, max_queue=1, compression=None, ping_interval=None, close_timeout=0.5
        )
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                group.create_task(_ask_for_events(connection))
                if read_every_s:
                    group.create_task(_read_now_and_then(connection, read_every_s))
        except* (TimeoutError, websockets.ConnectionClosed, OSError):
            pass
        finally:
            connection.transport.abort()


async def _ask_for_events(connection: ClientConnection) -> None:
    while True:
        for _ in range(FLUSHES_PER_SECOND // 20):
            await connection.send(FLUSH)
        await asyncio.sleep(1 / 20)


async def _read_now_and_then(connection: ClientConnection, every_s: float) -> None:
    while True:
        await connection.recv()
        await asyncio.sleep(every_s)


async def flood(url: str, seconds: float) -> str:
    """Send silence as fast as the service takes it, `seconds` of it; `done`, or what went wrong."""
    try:
        async for _ in client.transcribe(url, np.zeros(round(seconds * SAMPLE_RATE_HZ), dtype=np.float32), rtf=0):
            pass
    except client.ClientError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


async def ask_once(url: str) -> tuple[str, float]:
    """Ask for a session and leave at once: the answer (`ready` or an error's code) and how long it took, in seconds.

    Without our own client, which takes twice as much of the cores that it shares with the service.
    """
    asked_at = time.monotonic()
    try:
        connection = await websockets.connect(url, compression=None, ping_interval=None, open_timeout=ANSWER_SECONDS)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = json.loads(await connection.recv())
        finally:
            connection.transport.abort()
    except (TimeoutError, OSError, websockets.WebSocketException) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - asked_at
    code = answer.get("code", answer["type"])
    if code == "at_capacity" and not answer.get("retry_after_s"):
        code += " without retry_after_s"
    return code, time.monotonic() - asked_at


def crowd(url: str, size: int) -> list[tuple[str, float]]:
    """So many clients that `ask_once`, all at the same time; runs an event loop of its own."""

    async def arrive() -> list[tuple[str, float]]:
        return await asyncio.gather(*(ask_once(url) for _ in range(size)))

    return asyncio.run(arrive())


async def come_and_go(url: str, draw: random.Random) -> str:
    """A short session that ends in one of many ways; returns what came of it: `gone`, `done`, the code of an error.

    Where it was refused, the message as well. Raises TimeoutError where a session that should end does not.
    """
    leave = draw.choice(("abort", "abort unseen", "close", "end", "nonsense", "half a sample"))
    samples = np.zeros(round(draw.uniform(0.02, 1.5) * SAMPLE_RATE_HZ), dtype="<f4").tobytes()
    async with asyncio.timeout(SHORT_SESSION_TIMEOUT_SECONDS):
        connection = await websockets.connect(url, compression=None, ping_interval=None, close_timeout=5)
        try:
            if leave != "abort unseen":
                first = json.loads(await connection.recv())
                if first["type"] == "error":
                    return f"{first['code']}: {first['message']}"
                await connection.send(samples)
                await asyncio.sleep(draw.uniform(0, 0.5))
            match leave:
                case "close":
                    await connection.close()
                case "end":
                    await connection.send(json.dumps({"type": "end"}))
                case "nonsense":
                    await connection.send("good morning")
                case "half a sample":
                    await connection.send(b"\0\0\0")
                    await connection.send("EOS")
            return await _last_word(connection) if leave in ("end", "nonsense", "half a sample") else "gone"
        except websockets.ConnectionClosed as closed:
            return f"closed with {closed.rcvd.code if closed.rcvd else 1006}"
        finally:
            connection.transport.abort()


async def _last_word(connection: ClientConnection) -> str:
    while True:
        message = json.loads(await connection.recv())
        if message["type"] in ("done", "error"):
            return str(message.get("code", "done"))
