"""A whole audio file through a session of its own, for dialects that answer an HTTP request."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request

from serve_app.audio.upload import decode_upload
from serve_app.errors import InvalidMessage, MessageTooLarge, SpeechError
from serve_app.protocols.conversation import Host
from serve_app.session.core import Event
from serve_app.session.registry import DISCONNECTED
from serve_app.session.session import Session
from serve_app.telemetry import session_context


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The request's body. Raises MessageTooLarge before more than that is in memory."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                raise MessageTooLarge(f"expected a body of at most {most_bytes} bytes, got more")
    except ClientDisconnect:
        raise InvalidMessage("expected a whole request, the client left in its middle") from None
    return bytes(body)


async def recognise(file: bytes, credential: str, host: Host, max_seconds: float) -> AsyncGenerator[Event]:
    """The events of an audio file, as they come; waits for a slot if need be. Raises SpeechError.

    The slot is given back when the iteration ends, however it does: use `contextlib.aclosing`.
    """
    seat = host.registry.new(credential)
    outcome = DISCONNECTED
    feeding: asyncio.Task[None] | None = None
    try:
        with session_context(seat.session.id):
            async for _ in host.admission.enter(seat.session.open, host.settings.max_wait_seconds):
                pass
            feeding = asyncio.create_task(_feed(seat.session, file, max_seconds))
            async for _, event in seat.session.events():
                yield event
            outcome = "done"
    except SpeechError as error:
        outcome = error.code
        raise
    finally:
        if feeding:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        await host.registry.release(seat, outcome)


async def _feed(session: Session, file: bytes, max_seconds: float) -> None:
    """Whatever goes wrong here, the reader of the session's events is told."""
    try:
        blocks = decode_upload(file, max_seconds)
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            await session.feed(block)
        await session.end()
    except SpeechError as error:
        await session.end_with_mistake(error)
    except Exception as error:
        await session.end_with_mistake(SpeechError("the server failed to decode the file"))
        raise error
