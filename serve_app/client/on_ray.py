"""The client for programs on the service's own Ray cluster: the application's handle instead of an address.

It is imported by its own name (`from serve_app.client import on_ray`): the rest of the client does not need Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Literal, TypeAlias

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.util.queue import Queue

from serve_app.audio.threads import in_thread
from serve_app.client.errors import ConnectionLost, ServerError
from serve_app.client.events import Done, Event, Failure, Ping, parse

Format: TypeAlias = Literal["f32", "s16", "mulaw", "alaw", "opus"]

PIECE_BYTES = 64 * 1024
"""Larger chunks are sent in pieces."""

PIECES_AHEAD = 16
"""Pieces that the service has not taken yet; then the audio is not asked for more."""


async def transcribe(
    handle: DeploymentHandle,
    audio: AsyncIterable[bytes] | Iterable[bytes],
    *,
    format: Format = "f32",
    sample_rate: int | None = None,
    channels: int = 1,
    words: bool = False,
    pauses: bool = False,
    model: str | None = None,
    wait_s: float = 0.0,
) -> AsyncGenerator[Event]:
    """Send chunks of audio, cut anywhere, as they come, and yield what the service says, up to `Done`.

    `handle` is the application's (`serve.get_app_handle("stt")`); `format`, `sample_rate` (None: 24 kHz, of mu-law and
    A-law 8 kHz) and `channels` say what the bytes are, `words`, `pauses`, `model` and `wait_s` mean what they mean to
    `connect`. An iterable that is not asynchronous is read in a thread. The session is over when the iteration ends,
    however it does (use `contextlib.aclosing` where it may end early), and when this process does.

    Raises `ServerError` for an error the service reports, `ConnectionLost` where the service or the queue goes away,
    and what `audio` raises.
    """
    query = {"format": format, "channels": str(channels), "wait_s": f"{wait_s:.6f}"}
    query |= {"words": str(words).lower(), "pauses": str(pauses).lower()}
    if model:
        query["model"] = model
    if sample_rate is not None:
        query["sample_rate"] = str(sample_rate)
    queue = Queue(PIECES_AHEAD, actor_options={"num_cpus": 0})  # ends with this process, and the session with it
    response = handle.options(stream=True).transcribe.remote(queue, query)
    sending = asyncio.create_task(_send(queue, audio))
    done = False
    try:
        while (message := await _receive(response, sending)) is not None:
            match parse(message):
                case Ping():
                    continue
                case Failure() as failure:
                    raise ServerError(failure.code, failure.message, failure.retry_after_s)
                case event:
                    done = isinstance(event, Done)
                    yield event
        if not done:
            raise ConnectionLost("the service ended the session before it was over")
    finally:
        sending.cancel()
        response.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        queue.shutdown(force=True)


async def _send(queue: Queue, audio: AsyncIterable[bytes] | Iterable[bytes]) -> None:
    async with AsyncExitStack() as stack:
        if not isinstance(audio, AsyncIterable):
            audio = await stack.enter_async_context(aclosing(in_thread(iter(audio))))
        async for chunk in audio:
            if not isinstance(chunk, bytes | bytearray | memoryview):
                raise TypeError(f"expected chunks of bytes, got {type(chunk).__name__}")
            for start in range(0, len(chunk), PIECE_BYTES):
                await queue.put_async(bytes(chunk[start : start + PIECE_BYTES]))
        await queue.put_async(None)


async def _receive(response: DeploymentResponseGenerator, sending: asyncio.Task[None]) -> str | None:
    """The next message, None behind the last one. Raises what `sending` does as soon as it does."""
    receiving = asyncio.ensure_future(anext(response, None))
    try:
        await asyncio.wait([receiving, sending], return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            sending.result()
        return await receiving
    except (RayError, RayServeException) as error:
        raise ConnectionLost(f"the service, or the queue of the audio, is gone ({type(error).__name__})") from error
    finally:
        receiving.cancel()
