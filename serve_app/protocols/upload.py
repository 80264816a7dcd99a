"""Audio files through a session of their own, for clients that send nothing else."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.threads import in_thread
from serve_app.audio.upload import decode_upload
from serve_app.errors import AtCapacity, ServiceRestarting, SpeechError
from serve_app.protocols.conversation import Host
from serve_app.session.core import Event
from serve_app.session.models import ServedModel
from serve_app.session.registry import LEFT
from serve_app.session.session import Session
from serve_app.speech import SAMPLE_RATE_HZ
from serve_app.telemetry import get_logger, session_context

_log = get_logger(__name__)


async def measure(file: BinaryIO, host: Host) -> float:
    """Seconds of audio in a file: its errors come to light before a slot is taken.

    Waits for its turn, for a small file may hold hours. Raises what `decode_upload` does, and AtCapacity.
    """
    longest_s = host.settings.max_wait_seconds
    try:
        async with asyncio.timeout(longest_s):
            await host.measuring.acquire()
    except TimeoutError:
        raise AtCapacity(f"other uploads have kept this one waiting for {longest_s:g} s") from None
    try:
        samples = 0
        async with aclosing(in_thread(decode_upload(file, host.settings.max_upload_seconds))) as blocks:
            async for block in blocks:
                samples += len(block)
    finally:
        host.measuring.release()
    file.seek(0)
    return samples / SAMPLE_RATE_HZ


async def recognise(
    audio: AsyncGenerator[NDArray[np.float32]],
    credential: str,
    host: Host,
    *,
    dialect: str,
    model: ServedModel,
    wait_s: float = 0.0,
    on_audio: Callable[[float], None] = lambda seconds: None,
) -> AsyncGenerator[Event]:
    """The events of audio, float32 [n] at 24 kHz each, as they come. Raises SpeechError, also what `audio` raises.

    The first is awaited in the line for a slot, and no audio is taken before it is there. `on_audio` is told how many
    seconds of audio have been taken: 0 when the slot is there, and then again and again. The slot is given back when
    the iteration ends, however it does: use `contextlib.aclosing`. Iterate in one task.
    """
    seat = host.registry.new(credential, dialect, model, may_wait=wait_s > 0)
    outcome = LEFT  # nobody can come back to it, so the vault is not told of it either
    try:
        with session_context(seat.session.id):
            await model.engines.wait_until_known()
            async for _ in model.admission.enter(seat.session.open, wait_s):
                pass
            seat.span.add_event("open")
            on_audio(0.0)
            async with _feeding(seat.session, audio, on_audio):
                async for _, event in seat.session.events():
                    yield event
            outcome = "done"
    except SpeechError as error:
        outcome = error.code
        raise
    except asyncio.CancelledError:
        if not seat.farewell:
            raise
        if task := asyncio.current_task():
            task.uncancel()
        raise ServiceRestarting("this part of the service is being stopped: send the audio again") from None
    finally:
        # With nothing in front of it that may be interrupted: a client that leaves cancels this twice, once through
        # `while_client_stays`, and once more through Serve, which cancels the request's task at any moment after.
        await host.registry.release(seat, outcome)


@asynccontextmanager
async def _feeding(
    session: Session, audio: AsyncGenerator[NDArray[np.float32]], on_audio: Callable[[float], None]
) -> AsyncIterator[None]:
    """Feed the session for the length of the block."""
    feeding = asyncio.create_task(_feed(session, audio, on_audio))
    try:
        yield
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(
    session: Session, audio: AsyncGenerator[NDArray[np.float32]], on_audio: Callable[[float], None]
) -> None:
    """Feed as fast as the session takes it. Whatever goes wrong here, the reader of the session's events is told."""
    try:
        async with aclosing(audio):
            async for block in audio:
                await session.feed(block)
                on_audio(session.audio_seconds)
        await session.end()
    except SpeechError as error:
        await session.end_with_mistake(error)
    except Exception as error:
        _log.error("audio failed", error=repr(error), exc_info=error)
        await session.end_with_mistake(SpeechError("the server failed to decode the audio"))
