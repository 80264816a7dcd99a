"""Runs one WebSocket conversation for any dialect: both directions, keep-alive, errors, close codes, clean-up."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from serve_app.errors import InvalidMessage, MessageTooLarge, SlowClient, SpeechError
from serve_app.session.registry import DISCONNECTED, Seat, SessionRegistry
from serve_app.session.session import Done, Event, Session
from serve_app.settings import IngressSettings
from serve_app.telemetry import get_logger, session_context

_log = get_logger(__name__)

CLOSE_TIMEOUT_SECONDS = 2.0
"""How long a client may take to accept an error and a close frame."""

POLITE_CLOSURES = (1000, 1001)
"""Codes of a client that meant to close. Servers report a connection that broke off as 1005 or 1006."""

LEFT = "left"
"""Outcome of a session whose client closed the connection without ending the session."""

TAKEN_OVER_CLOSURE = 1008

MAX_REASON_BYTES = 123
"""A close frame's payload is at most 125 bytes, two of them the code (RFC 6455, section 5.5)."""

Message: TypeAlias = str | bytes


@dataclass(frozen=True)
class Resume:
    """A client's wish to go on with a session."""

    token: str
    last_number: int
    """Number of the last event that the client has seen."""


class Dialect(Protocol):
    """One wire format, for one connection."""

    def check_request(self) -> Resume | None:
        """Look at what came with the handshake, before a slot is taken; what to resume, if anything.

        Raises InvalidMessage.
        """

    def ready(self, session: Session, resume_token: str) -> Iterable[Message]:
        """What says that the session is open, or open again."""

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """What says that `event` happened; may be nothing."""

    def error(self, error: SpeechError) -> Iterable[Message]:
        """What says that the session ends with an error, before the close frame does."""

    def ping(self) -> Iterable[Message]:
        """What keeps an idle connection open."""

    async def receive(self, session: Session, message: Message) -> None:
        """Act on a message from the client. Raises InvalidMessage or InvalidAudio."""


async def converse(
    websocket: WebSocket, dialect: Dialect, registry: SessionRegistry, settings: IngressSettings
) -> None:
    """Accept the connection, hold a session, close both.

    Whatever happens (also a cancellation) the session is closed, or kept for its client to come back.
    """
    await _Connection(websocket, dialect, registry, settings).run()


class _Connection:
    def __init__(
        self, websocket: WebSocket, dialect: Dialect, registry: SessionRegistry, settings: IngressSettings
    ) -> None:
        self._websocket = websocket
        self._dialect = dialect
        self._registry = registry
        self._settings = settings
        self._sent_at = time.monotonic()

    async def run(self) -> None:
        await self._websocket.accept()
        credential = self._websocket.headers.get("authorization", "")
        try:
            resume = self._dialect.check_request()
            seat = (
                await self._registry.take_back(resume.token, credential) if resume else self._registry.new(credential)
            )
        except SpeechError as error:
            await self._say_goodbye(error)
            return
        outcome = DISCONNECTED  # also if this task is cancelled, which is how some servers tell of a lost client
        try:
            with session_context(seat.session.id):
                outcome = await self._hold(seat, resume)
        except asyncio.CancelledError:
            if seat.is_mine:
                raise
            await self._close(TAKEN_OVER_CLOSURE, "the session goes on over another connection")
        finally:
            await self._registry.release(seat, outcome)

    async def _hold(self, seat: Seat, resume: Resume | None) -> str:
        """Serve the session until it or the connection is over; how that came about."""
        session = seat.session
        try:
            if resume:
                session.check_resume(resume.last_number)
            else:
                await session.open()
            await self._send(self._dialect.ready(session, seat.token))
            await self._talk(session, resume)
        except WebSocketDisconnect as error:
            return LEFT if error.code in POLITE_CLOSURES else DISCONNECTED
        except SpeechError as error:
            await self._say_goodbye(error)
            return error.code
        except Exception as error:
            _log.error("conversation failed", error=repr(error), exc_info=error)
            await self._say_goodbye(SpeechError("the server failed; the session is over"))
            return SpeechError.code
        await self._close(1000, "done")
        return "done"

    async def _talk(self, session: Session, resume: Resume | None) -> None:
        """Both directions and the keep-alive, until one of them ends; the others are cancelled."""
        works = (self._send_events(session, resume), self._receive(session), self._keep_alive())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # In the order of the list: an error of the session explains more than the disconnect that it may have caused.
        for task in tasks:
            if task in finished and (error := task.exception()):
                raise error

    async def _send_events(self, session: Session, resume: Resume | None) -> None:
        async for number, event in session.events(resume.last_number if resume else None):
            await self._send(self._dialect.event(number, event))
            if isinstance(event, Done):
                return

    async def _receive(self, session: Session) -> None:
        await session.go_on()
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
            text, data = message.get("text"), message.get("bytes")
            content: Message | None = text if text is not None else data
            if content is None:
                raise InvalidMessage("expected a text or a binary message, got neither")
            if len(content) > self._settings.max_message_bytes:
                raise MessageTooLarge(
                    f"expected at most {self._settings.max_message_bytes} bytes in a message, got {len(content)}"
                )
            await self._dialect.receive(session, content)

    async def _keep_alive(self) -> None:
        while True:
            idle = time.monotonic() - self._sent_at
            if idle >= self._settings.ping_seconds:
                await self._send(self._dialect.ping())
                idle = 0.0
            await asyncio.sleep(self._settings.ping_seconds - idle)

    async def _send(self, messages: Iterable[Message]) -> None:
        """Send, or raise SlowClient if the client's buffers stay full."""
        for message in messages:
            try:
                async with asyncio.timeout(self._settings.slow_client_seconds):
                    if isinstance(message, str):
                        await self._websocket.send_text(message)
                    else:
                        await self._websocket.send_bytes(message)
            except TimeoutError:
                raise SlowClient(
                    f"expected the client to read within {self._settings.slow_client_seconds:g} s, it did not"
                ) from None
            self._sent_at = time.monotonic()

    async def _say_goodbye(self, error: SpeechError) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self._send(self._dialect.error(error))
        except (TimeoutError, SlowClient, WebSocketDisconnect, RuntimeError):
            pass  # gone, or not reading: the close below ends the connection all the same
        await self._close(error.close_code, f"{error.code}: {error.message}")

    async def _close(self, code: int, reason: str) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        short = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self._websocket.close(code, short)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            _log.debug("client left before the close", code=code)
