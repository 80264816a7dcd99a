"""Queues that programs on the same Ray cluster have made (`ray.util.queue`), and what it means when they are gone.

A queue is an actor of the program that has made it: it ends with the program, however that ends.
"""

import asyncio
from collections.abc import AsyncGenerator

import ray
from ray.exceptions import RayError
from ray.util.queue import Full, Queue

from serve_app.errors import InvalidMessage, MessageTooLarge, SlowClient, SpeechError
from serve_app.protocols.conversation import LEFT


class ProgramGone(SpeechError):
    """The program on the other end of a queue has ended, or has shut the queue down."""

    code = LEFT


async def take(queue: Queue) -> object:
    """Wait for the next item. Cancelled, it leaves the item to whoever takes next. Raises ProgramGone."""
    taking = queue.actor.get.remote()
    try:
        return await taking
    except asyncio.CancelledError:
        ray.cancel(taking)  # or the queue would go on, and give its next item to nobody
        raise
    except RayError as error:
        raise ProgramGone("expected a queue of a running program, it is gone") from error


async def put(queue: Queue, item: object, timeout_s: float) -> None:
    """Add an item as soon as there is room. Raises SlowClient and ProgramGone."""
    try:
        await queue.put_async(item, timeout=timeout_s)
    except Full:
        raise SlowClient(f"expected the program to read its queue within {timeout_s:g} s, it did not") from None
    except RayError as error:
        raise ProgramGone("expected a queue of a running program, it is gone") from error


async def chunks(queue: Queue, max_bytes: int) -> AsyncGenerator[bytes]:
    """Bytes, up to a None. Raises InvalidMessage for anything else, MessageTooLarge and ProgramGone."""
    while (chunk := await take(queue)) is not None:
        if not isinstance(chunk, bytes):
            raise InvalidMessage(f"expected bytes, or None at the end, got {type(chunk).__name__}")
        if len(chunk) > max_bytes:
            raise MessageTooLarge(f"expected at most {max_bytes} bytes in a chunk, got {len(chunk)}")
        yield chunk
