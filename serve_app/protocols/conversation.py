"""Runs one WebSocket conversation for any dialect: both directions, keep-alive, errors, close codes, clean-up."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from serve_app.errors import (
    AudioTooLong,
    InvalidAudio,
    InvalidMessage,
    MessageTooLarge,
    ServiceRestarting,
    SlowClient,
    SpeechError,
)
from serve_app.protocols.read_ahead import ReadAhead
from serve_app.session.core import Done, Event
from serve_app.session.models import Models
from serve_app.session.registry import DISCONNECTED, LEFT, RESTARTING, TAKEN_OVER, Farewell, Seat, SessionRegistry
from serve_app.session.session import Session
from serve_app.settings import IngressSettings
from serve_app.telemetry import IngressMetrics, get_logger, session_context

_log = get_logger(__name__)

CLOSE_TIMEOUT_SECONDS = 2.0
"""How long a client may take to accept an error and a close frame."""

POLITE_CLOSURES = (1000, 1001)
"""Codes of a client that meant to close. Servers report a connection that broke off as 1005 or 1006."""

FAREWELLS: dict[Farewell, tuple[int, str]] = {
    TAKEN_OVER: (1008, "the session goes on over another connection"),
    RESTARTING: (ServiceRestarting.close_code, "restarting: the service moves or stops, resume the session"),
}
"""Close code and reason of connections that we end while their sessions live on."""

LAST_WORDS_SECONDS = 5.0
"""How long a client that made a mistake is still told what it had said before."""

MAX_REASON_BYTES = 123
"""A close frame's payload is at most 125 bytes, two of them the code (RFC 6455, section 5.5)."""

END_OF_STREAM = "EOS"
"""What ends the audio in every dialect of the seeds, as text or as bytes."""

MEASURED_AT_ONCE = 2
"""Uploads that are decoded before they have a slot, to see whether they may have one; the next ones wait in turn."""

UNUSABLE = (InvalidMessage, InvalidAudio, MessageTooLarge, AudioTooLong)
"""Errors that are about what a client sent."""

Message: TypeAlias = str | bytes


@dataclass(frozen=True)
class Resume:
    """A client's wish to go on with a session."""

    token: str
    last_number: int
    """Number of the last event that the client has seen."""


@dataclass(frozen=True)
class Wishes:
    """What came with the handshake."""

    resume: Resume | None = None
    """The session to go on with; None for a new one."""
    wait_s: float = 0.0
    """How long the client would wait for a slot."""
    can_move: bool = False
    """Whether it resumes by itself when it is told that the service restarts."""
    can_resume: bool = False
    """Whether this dialect has a way back to a session; without one there is nothing to keep it for."""
    frames: bool = False
    """Whether every frame's result is wanted as a `Frame` event."""
    model: str | None = None
    """The model that a new session is to have, None for the default one."""


class Dialect(Protocol):
    """One wire format, for one connection. What it has no messages for it leaves as it is here."""

    name: str
    """What metrics and logs call it."""
    subprotocol: str | None = None
    """What is agreed on in the handshake, of those that the client offers; browsers insist if they offer any."""

    def check_request(self) -> Wishes:
        """Look at what came with the handshake, before a slot is taken. Raises InvalidMessage."""

    def waiting(self, place: int) -> Iterable[Message]:
        """What says that the client waits for a slot, and at which place in line, from 1; may be nothing."""
        return ()

    def ready(self, session: Session, resume_token: str | None) -> Iterable[Message]:
        """What says that the session is open, or open again; may be nothing."""
        return ()

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """What says that `event` happened; may be nothing."""

    def error(self, error: SpeechError) -> Iterable[Message]:
        """What says that the session ends with an error, before the close frame does."""

    def ping(self) -> Iterable[Message]:
        """What keeps an idle connection open; may be nothing, as the servers ping on WebSocket's own level, too."""
        return ()

    async def receive(self, session: Session, message: Message) -> Iterable[Message] | None:
        """Act on a message from the client; the answer to it, if it has one. Raises InvalidMessage or InvalidAudio."""


@dataclass(frozen=True)
class Host:
    """What all conversations of an ingress share."""

    registry: SessionRegistry
    models: Models
    settings: IngressSettings
    metrics: IngressMetrics
    read_ahead: ReadAhead = field(default_factory=ReadAhead)
    measuring: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MEASURED_AT_ONCE))

    def count_unusable(self, dialect: str, error: SpeechError) -> None:
        """Count an error that is about what the client sent, and no other."""
        if isinstance(error, UNUSABLE):
            self.metrics.decode_errors_total.labels(dialect, error.code).inc()


async def converse(websocket: WebSocket, dialect: Dialect, host: Host) -> None:
    """Accept the connection, hold a session, close both.

    Whatever happens (also a cancellation) the session is closed here; it goes on elsewhere if its client was cut off.
    """
    await _Connection(websocket, dialect, host).run()


async def refuse(websocket: WebSocket, dialect: Dialect, host: Host, error: SpeechError) -> None:
    """Accept the connection only to say why it ends: an HTTP status would never reach a browser's script."""
    await _Connection(websocket, dialect, host).refuse(error)


class _Connection:
    def __init__(self, websocket: WebSocket, dialect: Dialect, host: Host) -> None:
        self._websocket = websocket
        self._dialect = dialect
        self._registry = host.registry
        self._settings = host.settings
        self._host = host
        self._read_ahead = host.read_ahead.open()
        self._sent_at = time.monotonic()
        self._sending = asyncio.Lock()
        self._next: asyncio.Task[MutableMapping[str, Any]] | None = None  # a message that is being waited for
        self._early: deque[MutableMapping[str, Any]] = deque()  # what came before there was a slot

    async def run(self) -> None:
        await self._websocket.accept(self._dialect.subprotocol)
        try:
            await self._run()
        finally:
            self._read_ahead.close()
            if self._next:
                self._next.cancel()

    async def refuse(self, error: SpeechError) -> None:
        await self._websocket.accept(self._dialect.subprotocol)
        await self._say_goodbye(error)

    async def _run(self) -> None:
        credential = self._websocket.headers.get("authorization", "")
        try:
            wishes = self._dialect.check_request()
            resume = wishes.resume
            if resume:
                seat = await self._registry.resume(resume.token, credential, self._dialect.name)
            else:
                model = self._host.models.named(wishes.model)
                seat = self._registry.new(credential, self._dialect.name, model, may_wait=wishes.wait_s > 0)
        except SpeechError as error:
            self._host.count_unusable(self._dialect.name, error)
            await self._say_goodbye(error)
            return
        seat.can_move = wishes.can_move
        outcome = DISCONNECTED  # also if this task is cancelled, which is how some servers tell of a lost client
        try:
            with session_context(seat.session.id):
                outcome = await self._hold(seat, wishes)
        except asyncio.CancelledError:
            if not seat.farewell:
                raise
            outcome = seat.farewell
            if task := asyncio.current_task():
                task.uncancel()
        finally:
            await self._registry.release(seat, outcome)
        if seat.farewell:
            if seat.farewell == RESTARTING and not seat.can_move:
                await self._say_goodbye(ServiceRestarting("this part of the service is being stopped: connect again"))
            await self._close(*FAREWELLS[seat.farewell])

    async def _hold(self, seat: Seat, wishes: Wishes) -> str:
        """Serve the session until it or the connection is over; how that came about."""
        session = seat.session
        try:
            if wishes.resume:
                session.resume(wishes.resume.last_number)
            else:
                await self._open(session, wishes.wait_s)
            session.tell_frames(wishes.frames)
            seat.span.add_event("open")
            if wishes.can_resume:
                self._registry.keep(seat)
            await self._send(self._dialect.ready(session, seat.token if self._registry.can_resume else None))
            await self._talk(seat)
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

    async def _open(self, session: Session, wait_s: float) -> None:
        """Take a slot, in line if need be, unless the client leaves meanwhile."""
        works = (self._wait_in_line(session, wait_s), self._listen_ahead(), self._keep_alive())
        awaited, *others = tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                if task.done() and not awaited.done():
                    task.result()  # raises: the client has left, or does not read
            await awaited
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self._early:
                self._read_ahead.close()

    async def _wait_in_line(self, session: Session, wait_s: float) -> None:
        await session.model.engines.wait_until_known()
        async with aclosing(session.model.admission.enter(session.open, wait_s)) as places:
            async for place in places:
                await self._send(self._dialect.waiting(place))

    async def _listen_ahead(self) -> None:
        """Take messages from a client that has no slot yet, to hear when it leaves; what is too much waits outside."""
        while self._read_ahead.has_room:
            coming = self._next_message()
            await asyncio.wait([coming])
            self._next = None
            message = coming.result()
            self._early.append(message)  # also that it has left: the slot may come in the same moment
            _raise_if_disconnected(message)
            self._read_ahead.add(len(message.get("bytes") or message.get("text") or ""))
        await asyncio.Event().wait()

    async def _talk(self, seat: Seat) -> None:
        """Both directions and the keep-alive, until one of them ends; the others are cancelled."""
        works = (self._send_events(seat.session), self._receive(seat), self._keep_alive())
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

    async def _send_events(self, session: Session) -> None:
        async for number, event in session.events():
            await self._send(self._dialect.event(number, event))
            if isinstance(event, Done):
                return

    async def _receive(self, seat: Seat) -> None:
        session = seat.session
        await session.go_on()
        while True:
            if self._early:
                message = self._early.popleft()
                if not self._early:
                    self._read_ahead.close()
            else:
                message = await self._next_message()
                self._next = None
            _raise_if_disconnected(message)
            seat.client_is_there()
            try:
                await self._send(await self._dialect.receive(session, self._content(message)) or ())
            except (InvalidMessage, InvalidAudio, MessageTooLarge) as error:
                self._host.count_unusable(self._dialect.name, error)
                await _let_last_words_out(session, error)

    def _next_message(self) -> asyncio.Task[MutableMapping[str, Any]]:
        """The wait for the next message. It is one task until it is taken: what arrives must not get lost."""
        if self._next is None:
            self._next = asyncio.create_task(self._websocket.receive())
        return self._next

    def _content(self, message: MutableMapping[str, Any]) -> Message:
        text, data = message.get("text"), message.get("bytes")
        content: Message | None = text if text is not None else data
        if content is None:
            raise InvalidMessage("expected a text or a binary message, got neither")
        size = len(content.encode()) if isinstance(content, str) else len(content)
        if size > self._settings.max_message_bytes:
            raise MessageTooLarge(f"expected at most {self._settings.max_message_bytes} bytes in a message, got {size}")
        return content

    async def _keep_alive(self) -> None:
        while True:
            idle = time.monotonic() - self._sent_at
            if idle >= self._settings.ping_seconds:
                await self._send(self._dialect.ping())
                idle = 0.0
            await asyncio.sleep(self._settings.ping_seconds - idle)

    async def _send(self, messages: Iterable[Message]) -> None:
        """Send, or raise SlowClient if the client's buffers stay full."""
        async with self._sending:  # messages that belong together stay together
            for message in messages:
                await self._send_one(message)

    async def _send_one(self, message: Message) -> None:
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


def is_end(message: Message) -> bool:
    """Whether it is the end of the stream."""
    return message in (END_OF_STREAM, END_OF_STREAM.encode())


def _raise_if_disconnected(message: MutableMapping[str, Any]) -> None:
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))


async def _let_last_words_out(session: Session, error: SpeechError) -> None:
    """Have the reader of the events tell what was said before the client's mistake, then the mistake."""
    try:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await session.end_with_mistake(error)
            await asyncio.Event().wait()  # the reader ends the conversation
    except TimeoutError:
        raise error from None
