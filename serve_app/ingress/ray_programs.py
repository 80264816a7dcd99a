"""Programs on the same Ray cluster as clients, by the application's handle.

Their audio comes over a queue of theirs (see `ray_queues`), because a call cannot bring an iterator along, and ends
with it: a program that is killed frees its slot as soon as Ray notices. They are served as WebSockets are, by the same
code, and need no key: whoever may run programs on the cluster has access to everything in it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, TypeAlias
from urllib.parse import urlencode

import anyio
from ray.util.queue import Queue
from starlette.websockets import WebSocket

from serve_app.audio.file_chunks import decode_chunks
from serve_app.errors import SpeechError
from serve_app.ingress import ray_queues
from serve_app.ingress.ray_queues import ProgramGone
from serve_app.protocols.conversation import END_OF_STREAM, Host
from serve_app.protocols.query import number
from serve_app.protocols.upload import recognise
from serve_app.settings import MEBIBYTE
from serve_app.transcript import Token

LEAVE_SECONDS = 2.0
"""How long a conversation may take to notice that its program has left."""

GOING_AWAY = 1001

Endpoint: TypeAlias = Callable[[WebSocket], Awaitable[None]]


async def converse_over_queue(endpoint: Endpoint, audio: Queue, query: Mapping[str, str]) -> AsyncGenerator[str]:
    """Have a program converse with the endpoint of a WebSocket; yields the text messages that it is sent.

    What the program puts into the queue are its messages, and None the end of its audio. The conversation is over when
    the iteration ends, or the queue is gone.
    """
    sender, receiver = anyio.create_memory_object_stream[str](0)
    program = _Program(audio, sender.send)
    scope = {"type": "websocket", "path": "/", "query_string": urlencode(query).encode(), "headers": []}

    async def talk() -> None:
        async with sender:
            await endpoint(WebSocket(scope, program.receive, program.send))

    conversation = asyncio.create_task(talk(), name="ray-program")
    try:
        async with receiver:
            async for message in receiver:
                yield message
    finally:
        program.leave()
        try:
            await asyncio.wait([conversation], timeout=LEAVE_SECONDS)
        finally:  # also if this is cancelled once more
            conversation.cancel()
            await asyncio.gather(conversation, return_exceptions=True)


class _Program:
    """A program as the client of a WebSocket (ASGI's messages)."""

    def __init__(self, audio: Queue, tell: Callable[[str], Awaitable[None]]) -> None:
        self._audio = audio
        self._tell = tell
        self._has_connected = False
        self._has_ended = False
        self._left = asyncio.Event()

    def leave(self) -> None:
        """The program is not there any more."""
        self._left.set()

    async def receive(self) -> MutableMapping[str, Any]:
        """Wait for the program's next message."""
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        leaving = asyncio.create_task(self._left.wait())
        taking = asyncio.create_task(ray_queues.take(self._audio)) if not self._has_ended else leaving
        try:
            await asyncio.wait([leaving, taking], return_when=asyncio.FIRST_COMPLETED)
            if self._left.is_set():
                return {"type": "websocket.disconnect", "code": GOING_AWAY}
            return self._message(taking.result())
        except ProgramGone:
            return {"type": "websocket.disconnect", "code": GOING_AWAY}
        finally:
            for task in (leaving, taking):
                task.cancel()
            await asyncio.gather(leaving, taking, return_exceptions=True)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Tell the program, if it is still there."""
        if message["type"] == "websocket.send":
            with suppress(anyio.BrokenResourceError):
                await self._tell(message["text"])

    def _message(self, item: object) -> MutableMapping[str, Any]:
        if item is None:
            self._has_ended = True
            item = END_OF_STREAM
        content = {"bytes": item} if isinstance(item, bytes) else {"text": item} if isinstance(item, str) else {}
        return {"type": "websocket.receive", **content}


async def transcribe_queue(audio: Queue, transcription: Queue, wait_s: float, model: str | None, host: Host) -> None:
    """Text of audio files, from one queue to another: see `IngressReplica.transcribe_queue`."""
    settings = host.settings
    try:
        chosen = host.models.named(model)
        wait_s = number({"wait_s": f"{wait_s:g}"}, "wait_s", settings.max_wait_seconds)
        chunks = ray_queues.chunks(audio, settings.max_message_bytes)
        blocks = decode_chunks(chunks, settings.max_upload_seconds, settings.max_upload_megabytes * MEBIBYTE)
        async with aclosing(recognise(blocks, "", host, dialect="handle", model=chosen, wait_s=wait_s)) as events:
            async for event in events:
                if isinstance(event, Token):
                    await ray_queues.put(transcription, event.text, settings.slow_client_seconds)
    finally:
        with suppress(SpeechError):
            await ray_queues.put(transcription, None, settings.slow_client_seconds)
