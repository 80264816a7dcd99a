"""Audio files that come in chunks, decoded as they come: the chunks of one file, or of one after the other."""

import asyncio
import io
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import CancelledError
from contextlib import aclosing
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.containers import HEAD_BYTES, MP3, MP4, OGG, Container, recognise
from serve_app.audio.threads import in_thread
from serve_app.audio.upload import decode_container, decode_upload, recognise_file
from serve_app.errors import InvalidAudio, MessageTooLarge, SpeechError
from serve_app.speech import FRAME_SAMPLES

EARLY_OPTIONS = {"analyzeduration": "100000", "probesize": str(64 * 1024)}
"""A demuxer would look at five seconds of a stream before anything of it comes out; this is 0.1 s of it, or 64 KiB."""

MEMORY_BYTES = 2**20
"""A file that must be whole before it can be decoded is on disk beyond this."""

_OGG_FLAGS, _OGG_FIRST_PAGE = 5, 2
"""Place of an Ogg page's flags, and the one that says that a stream begins (RFC 3533)."""


async def decode_chunks(
    chunks: AsyncIterator[bytes], max_seconds: float, max_bytes: int
) -> AsyncGenerator[NDArray[np.float32]]:
    """Yield blocks of float32 [n], mono, 24 kHz, while the chunks of a file come, cut at any byte.

    A chunk that begins as a file does begins the next one; the limits are each file's. The next chunk is taken when the
    one before is used up. M4A files are decoded when they are whole, because what they need first may stand at their
    end; only to them does `max_bytes` apply.

    Raises what `decode_upload` does, MessageTooLarge, and what `chunks` raises.
    """
    files = _Files(chunks)
    while head := await files.next_head():
        container = recognise_file(head)
        if container is MP4:
            blocks = _decode_whole(head, files.rest(), max_seconds, max_bytes)
        else:
            blocks = _decode_early(head, files.rest(), container, max_seconds)
        async with aclosing(blocks):
            async for block in blocks:
                yield block


class _Files:
    """Chunks, told apart where another file begins."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._ahead = b""  # the chunk that begins the next file

    async def next_head(self) -> bytes:
        """The beginning of the next file, as much of it as it takes to recognise it; empty if there is none."""
        head, self._ahead = self._ahead, b""
        while not recognise(head) and len(head) < HEAD_BYTES:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            head += chunk
        return head

    async def rest(self) -> AsyncGenerator[bytes]:
        """The chunks behind the head, up to the end of the file."""
        while (chunk := await anext(self._chunks, None)) is not None:
            if _begins_file(chunk):
                self._ahead = chunk
                return
            yield chunk


def _begins_file(chunk: bytes) -> bool:
    """Whether a chunk is the first of a file, and not one out of its middle that looks the same."""
    container = recognise(chunk[:HEAD_BYTES])
    if container is OGG:
        return len(chunk) > _OGG_FLAGS and bool(chunk[_OGG_FLAGS] & _OGG_FIRST_PAGE)
    return container is not None and (container is not MP3 or chunk.startswith(b"ID3"))


async def _decode_early(
    head: bytes, rest: AsyncGenerator[bytes], container: Container, max_seconds: float
) -> AsyncGenerator[NDArray[np.float32]]:
    source = _ChunkReader(head, rest)
    blocks = in_thread(decode_container(source, container, max_seconds, FRAME_SAMPLES, EARLY_OPTIONS))
    try:
        async with aclosing(blocks):
            async for block in blocks:
                yield block
        if not source.error:
            async for _ in rest:  # what stands behind the audio
                pass
    except InvalidAudio:
        if not source.error:
            raise
    finally:
        await source.close()
        await rest.aclose()
    if source.error:
        raise source.error  # and not what the decoder makes of a file that breaks off


class _ChunkReader:
    """What the thread of a decoder reads: it waits in it for chunks, which come from the event loop."""

    def __init__(self, head: bytes, rest: AsyncGenerator[bytes]) -> None:
        self.error: SpeechError | None = None
        """Why there are no more chunks; None where they have come to their end."""
        self._loop = asyncio.get_running_loop()
        self._rest = rest
        self._chunk = io.BytesIO(head)
        self._waiting: asyncio.Task[bytes] | None = None
        self._is_over = False

    def read(self, size: int) -> bytes:
        """Wait for bytes; none once there are no more chunks."""
        while not (data := self._chunk.read(size)) and not self._is_over:
            try:
                self._chunk = io.BytesIO(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
            except CancelledError:
                self._is_over = True
        return data

    async def close(self) -> None:
        """Let the thread go."""
        self._is_over = True
        if self._waiting:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _next(self) -> bytes:
        if self._is_over:
            return b""
        self._waiting = asyncio.current_task()
        try:
            chunk = await anext(self._rest, None)
        except SpeechError as error:
            self.error, chunk = error, None
        self._waiting = None
        self._is_over = chunk is None
        return chunk or b""


async def _decode_whole(
    head: bytes, rest: AsyncGenerator[bytes], max_seconds: float, max_bytes: int
) -> AsyncGenerator[NDArray[np.float32]]:
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as file:
        file.write(head)
        async with aclosing(rest):
            async for chunk in rest:
                await asyncio.to_thread(file.write, chunk)
                if file.tell() > max_bytes:
                    raise MessageTooLarge(f"expected an M4A file of at most {max_bytes} bytes, got more")
        file.seek(0)
        blocks = in_thread(decode_upload(cast(BinaryIO, file), max_seconds))
        async with aclosing(blocks):
            async for block in blocks:
                yield block
