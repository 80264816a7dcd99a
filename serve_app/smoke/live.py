"""Dialects that are spoken in real time: the clip goes out as a microphone would send it, words come meanwhile."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from serve_app import client
from serve_app.client.connection import what_it_means
from serve_app.client.errors import ServerError
from serve_app.smoke.heard import Heard, Said, Unexpected
from serve_app.smoke.target import Target
from serve_app.smoke.wires import Wire
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE_HZ


async def by_our_client(
    target: Target, said: Said, *, format: client.Format = "f32", sample_rate: int = SAMPLE_RATE_HZ
) -> Heard:
    """`/v1/stream` by the package's own client. Raises `ClientError`."""
    pace, text, arrived_s = client.Pace(), "", None
    events = client.transcribe(
        target.stream_url, said.samples, pace=pace, words=True, format=format, sample_rate=sample_rate,
        api_key=target.api_key, headers=target.headers,
    )  # fmt: skip
    begins_s = None
    async with aclosing(events) as arrivals:
        async for arrival in arrivals:
            match arrival.event:
                case client.Token(text=piece):
                    arrived_s = arrival.at_s if arrived_s is None else arrived_s
                    text += piece
                case client.Word(start=start) if begins_s is None:
                    begins_s = start
    first_word_s = begins_s if said.first_word_s is None else said.first_word_s
    return Heard(text.strip(), _delay_s(arrived_s, pace.sent_at_s, first_word_s), begins_s)


async def by_wire(target: Target, said: Said, make: Callable[[], Wire]) -> Heard:
    """Any dialect that has a `Wire`. Raises `ClientError` and `Unexpected`."""
    wire = make()
    async with target.websocket(wire.path, wire.query) as connection:
        origin = time.monotonic()
        sent_at_s: list[float] = []
        sending = asyncio.create_task(_send(connection, wire, said, origin, sent_at_s))
        try:
            text, arrived_s = await _listen(connection, wire, origin)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionClosed):  # reading tells why a connection closes
                await sending
    return Heard(text.strip(), _delay_s(arrived_s, sent_at_s, said.first_word_s))


async def _send(connection: ClientConnection, wire: Wire, said: Said, origin: float, sent_at_s: list[float]) -> None:
    for message in wire.opening():
        await connection.send(message)
    for number, start in enumerate(range(0, len(said.samples), FRAME_SAMPLES), 1):
        await asyncio.sleep(max(0.0, origin + number * FRAME_SECONDS - time.monotonic()))
        if message := wire.audio(said.samples[start : start + FRAME_SAMPLES]):
            await connection.send(message)
        sent_at_s.append(time.monotonic() - origin)
    for message in wire.closing():
        await connection.send(message)


async def _listen(connection: ClientConnection, wire: Wire, origin: float) -> tuple[str, float | None]:
    """All text, and when the first of it came."""
    text, arrived_s = "", None
    try:
        while True:
            message = await connection.recv()
            text += wire.text(message)
            if text and arrived_s is None:
                arrived_s = time.monotonic() - origin
            if wire.is_last(message):
                return text, arrived_s
    except ConnectionClosedOK:
        if wire.last:
            raise Unexpected(f"expected {wire.last} before the end, got {text!r} and the end") from None
        return text, arrived_s
    except ConnectionClosed as error:
        raise _told(error) from None


def _told(error: ConnectionClosed) -> client.ClientError:
    """What the close frame says; a dialect without error messages has its code in front of the reason."""
    code, separator, reason = (error.rcvd.reason if error.rcvd else "").partition(": ")
    return ServerError(code, reason) if separator and code.isidentifier() else what_it_means(error)


def _delay_s(arrived_s: float | None, sent_at_s: list[float], first_word_s: float | None) -> float | None:
    """From the moment the start of the first word was sent to the first text."""
    if arrived_s is None or first_word_s is None:
        return None
    with suppress(IndexError):  # text before the first word: nothing to measure from
        return arrived_s - sent_at_s[int(first_word_s / FRAME_SECONDS)]
    return None
