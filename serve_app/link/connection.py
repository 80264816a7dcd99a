"""One side of a link connection: framed messages both ways, coalesced writes, heartbeats, bounds."""

import asyncio
from collections.abc import Callable
from typing import Literal

from serve_app.link.messages import LENGTH_BYTES, LinkError, Message, decode, encode
from serve_app.settings import LinkSettings
from serve_app.telemetry import get_logger

_log = get_logger(__name__)


MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""A peer that lets this much pile up is gone."""

MAX_STRANGER_BYTES = 1024
"""Largest message of a peer that is not trusted yet: an attach takes some 60 bytes."""


class Connection:
    """A framed message connection over a stream pair; `run` serves it until it ends."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        settings: LinkSettings,
        *,
        on_message: Callable[[Message], None],
        heartbeat: Callable[[], Message],
        before_write: Callable[[], list[Message]] = list,
        trusted: bool = True,
        count_bytes: Callable[[Literal["in", "out"], int], None] = lambda direction, count: None,
    ) -> None:
        """`before_write` supplies what the owner has collected for the write that is due; `count_bytes` is told of all
        traffic.

        A peer that is not `trusted` is given small messages, no heartbeat and `timeout_seconds` in all, until `trust`.
        """
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._on_message = on_message
        self._heartbeat = heartbeat
        self._before_write = before_write
        self._count_bytes = count_bytes
        self._write_due: asyncio.TimerHandle | None = None
        self._last_write = 0.0
        self.is_trusted = trusted
        """Whether the peer has shown who it is."""
        self._opened_at = asyncio.get_running_loop().time()
        peer = writer.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"

    def trust(self) -> None:
        """The peer has shown who it is: from here on it has the limits of a link."""
        if not self.is_trusted:
            self.is_trusted = True
            self.send(self._heartbeat())

    def send(self, message: Message) -> None:
        """Send a message now."""
        if self._writer.is_closing():
            return
        data = encode(message)
        self._writer.write(data)
        self._count_bytes("out", len(data))
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            _log.warning("link peer does not read", peer=self.peer)
            self.abort()

    def request_write(self) -> None:
        """Ask for `before_write` to be called and its messages sent: soon, together with what else comes by then."""
        if self._write_due or self._writer.is_closing():
            return
        loop = asyncio.get_running_loop()
        self._write_due = loop.call_at(
            max(loop.time(), self._last_write + self._settings.coalesce_seconds), self._write_collected
        )

    def abort(self) -> None:
        """End the connection at once; `run` returns."""
        self._writer.transport.abort()

    async def run(self) -> None:
        """Read messages until the peer leaves, breaks a rule or falls silent; the reason is logged."""
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            while True:
                async with asyncio.timeout_at(self._read_by()):
                    length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
                    largest = self._settings.max_message_bytes if self.is_trusted else MAX_STRANGER_BYTES
                    if length > largest:
                        raise LinkError(f"expected at most {largest} bytes, got {length}")
                    body = await self._reader.readexactly(length)
                self._count_bytes("in", LENGTH_BYTES + length)
                self._on_message(decode(body))
        except LinkError as error:
            _log.warning("link peer broke a rule", peer=self.peer, reason=str(error))
        except TimeoutError:
            _log.warning("link peer fell silent", peer=self.peer, timeout_seconds=self._settings.timeout_seconds)
        except (asyncio.IncompleteReadError, ConnectionError):
            _log.info("link peer left", peer=self.peer)
        finally:
            heartbeats.cancel()
            if self._write_due:
                self._write_due.cancel()
            self.abort()

    def _read_by(self) -> float:
        """When the next message must be there: pings do not win a stranger any time."""
        since = asyncio.get_running_loop().time() if self.is_trusted else self._opened_at
        return since + self._settings.timeout_seconds

    def _write_collected(self) -> None:
        self._write_due = None
        self._last_write = asyncio.get_running_loop().time()
        for message in self._before_write():
            self.send(message)

    async def _send_heartbeats(self) -> None:
        while True:
            if self.is_trusted:
                self.send(self._heartbeat())
            await asyncio.sleep(self._settings.heartbeat_seconds)
