"""What dialects of plain HTTP share: uploads with limits, and clients that do not wait for their answer."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, BinaryIO, cast

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from serve_app.errors import IdleTimeout, MessageTooLarge
from serve_app.settings import MEBIBYTE

STALL_SECONDS = 30.0
"""An upload of which nothing comes for so long is over."""

LINGER_SECONDS = 5.0
"""How long the rest of an upload that is refused is read: many clients listen only when they have sent everything."""

MEMORY_BYTES = MEBIBYTE
"""How much of an upload is in memory; the rest is on disk."""


async def limited(stream: AsyncGenerator[bytes], most_megabytes: int) -> AsyncGenerator[bytes]:
    """The pieces of an upload. Raises MessageTooLarge, IdleTimeout, and ClientDisconnect."""
    received = 0
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise IdleTimeout(f"expected the rest of the upload, nothing came for {STALL_SECONDS:g} s") from None
        if chunk is None:
            return
        received += len(chunk)
        if received > most_megabytes * MEBIBYTE:
            raise MessageTooLarge(f"expected an upload of at most {most_megabytes} MiB, got more")
        yield chunk


async def read_on(stream: AsyncGenerator[bytes]) -> None:
    """Read the rest of an upload that is refused, for a while."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in stream:
                pass


@asynccontextmanager
async def uploaded(request: Request, most_megabytes: int) -> AsyncIterator[BinaryIO]:
    """The request's body as a file, which lives as long as the block. Raises what `limited` does."""
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as file:
        upload = UploadFile(cast(BinaryIO, file))  # which writes to the disk in a thread
        async with aclosing(request.stream()) as stream:
            try:
                async with aclosing(limited(stream, most_megabytes)) as body:
                    async for chunk in body:
                        await upload.write(chunk)
            except MessageTooLarge:
                await read_on(stream)
                raise
        await upload.seek(0)
        yield upload.file


async def while_client_stays(receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
    """Answer a request whose body was read; stop as soon as its client has left."""
    answer = asyncio.create_task(answering)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([answer, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (answer, leaving):
            task.cancel()
        await asyncio.gather(answer, leaving, return_exceptions=True)
    if not answer.cancelled():
        answer.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
