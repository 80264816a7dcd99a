"""How clients speak the dialects that `serve_app.client` does not: for measuring them, here and on other servers.

A *wire* makes messages of audio and reads what comes back, in terms of the client's own events; it knows no network.
`Conversation` sends and receives, and has the methods of `client.Stream` except `flush`.
"""

import asyncio
import base64
import json
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from serve_app import client
from serve_app.client.address import stream_url
from serve_app.client.connection import close_connection, open_connection, what_it_means
from serve_app.client.encoding import Format, make_encoder
from serve_app.errors import shown
from serve_app.speech import SAMPLE_RATE_HZ

Message: TypeAlias = str | bytes

MARKER_SILENCE_S = 5
"""Silence behind moshi-server's Marker, which brings it out: more than any model's delay."""


class Wire(Protocol):
    """One dialect, for one connection."""

    path: ClassVar[str]
    formats: ClassVar[tuple[Format, ...]]
    """How the audio may travel; the first is what its clients do."""
    query: ClassVar[Mapping[str, str]] = MappingProxyType({})
    announces_ready: ClassVar[bool] = True
    """Whether the server says when it listens."""
    ends_by_closing: ClassVar[bool] = False
    """Whether the server's close frame is the only end."""

    failure: client.ServerError | None = None
    """What an error message without a code has said: the close frame that follows may have the code."""

    @abstractmethod
    def __init__(self, format: Format, model: str | None) -> None:
        """`format` is one of `formats`; `model` is asked for where the dialect can."""

    def opening(self) -> Iterable[Message]:
        """What is sent once the server listens."""
        return ()

    @abstractmethod
    def audio(self, samples: NDArray[np.float32]) -> Iterable[Message]:
        """A piece of audio, float32 [n] at 24 kHz."""

    @abstractmethod
    def closing(self) -> Iterable[Message]:
        """What says that no more audio comes."""

    @abstractmethod
    def read(self, message: Message) -> Iterable[client.Event]:
        """What a message says. Raises `ServerError` and `ProtocolViolation`."""


class _Moshi(Wire):
    """moshi-server's `/api/asr-streaming`. It closes behind an Error."""

    path = "/api/asr-streaming"
    formats = ("f32", "opus")

    def __init__(self, format: Format, model: str | None) -> None:
        self._encoder = make_encoder("opus", SAMPLE_RATE_HZ) if format == "opus" else None
        self._word: client.Word | None = None

    def audio(self, samples: NDArray[np.float32]) -> Iterable[Message]:
        if self._encoder is None:
            yield _packed("Audio", pcm=samples.tolist())
        elif data := self._encoder.encode(samples):
            yield _packed("OggOpus", data=data)

    def closing(self) -> Iterable[Message]:
        yield _packed("Marker", id=1)
        silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
        for _ in range(MARKER_SILENCE_S):
            yield from self.audio(silence)

    def read(self, message: Message) -> Iterable[client.Event]:
        try:
            fields = msgpack.unpackb(message) if isinstance(message, bytes) else None
        except (ValueError, msgpack.UnpackException):
            fields = None
        match fields:
            case {"type": "Ready"}:
                yield client.Ready(session_id="", model="")
            case {"type": "Word", "text": str(text), "start_time": float(start)}:
                yield from self._ended(start)
                self._word = client.Word(text=text, start=start, end=start)
                yield client.Token(text=f" {text}")
            case {"type": "EndWord", "stop_time": float(stop)}:
                yield from self._ended(stop)
            case {"type": "Marker"}:
                yield from self._ended(self._word.end if self._word else 0.0)
                yield client.Done(audio_seconds=0.0)
            case {"type": "Error", "message": reason}:
                code = "at_capacity" if reason == "no free channels" else "error"
                self.failure = client.ServerError(code, str(reason))
            case {"type": str()}:
                pass
            case _:
                raise client.ProtocolViolation(f"expected a msgpack map with a type, got {shown(message)}")

    def _ended(self, end_s: float) -> Iterable[client.Event]:
        """The word that waits for its end."""
        if self._word:
            yield self._word.model_copy(update={"end": max(self._word.start, end_s)})
        self._word = None


class _Realtime(Wire):
    """OpenAI's `/v1/realtime`; the client commits, once."""

    path = "/v1/realtime"
    formats = ("s16",)
    query: ClassVar[Mapping[str, str]] = MappingProxyType({"intent": "transcription"})

    def __init__(self, format: Format, model: str | None) -> None:
        self._encoder = make_encoder("s16", SAMPLE_RATE_HZ)
        self._transcription = {"transcription": {"model": model}} if model else {}

    def opening(self) -> Iterable[Message]:
        heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE_HZ}, "turn_detection": None}
        session = {"type": "transcription", "audio": {"input": heard | self._transcription}}
        yield json.dumps({"type": "session.update", "session": session})

    def audio(self, samples: NDArray[np.float32]) -> Iterable[Message]:
        piece = base64.b64encode(self._encoder.encode(samples)).decode()
        yield json.dumps({"type": "input_audio_buffer.append", "audio": piece})

    def closing(self) -> Iterable[Message]:
        yield json.dumps({"type": "input_audio_buffer.commit"})

    def read(self, message: Message) -> Iterable[client.Event]:
        fields = _fields(message)
        match str(fields.get("type")).removeprefix("conversation.item.input_audio_transcription."):
            case "session.created" | "transcription_session.created":
                yield client.Ready(session_id="", model="")
            case "delta":
                yield client.Token(text=str(fields.get("delta", "")))
            case "completed":
                yield client.Done(audio_seconds=0.0)
            case "failed" | "error":
                error = fields.get("error") or {}
                raise client.ServerError(str(error.get("code")), str(error.get("message")))


class _Transcribe(Wire):
    """`/v1/transcribe`, of the guide "stt-1b-en_fr on Modal"."""

    path = "/v1/transcribe"
    formats = ("s16",)
    announces_ready = False

    def __init__(self, format: Format, model: str | None) -> None:
        self._encoder = make_encoder("s16", SAMPLE_RATE_HZ)

    def audio(self, samples: NDArray[np.float32]) -> Iterable[Message]:
        yield self._encoder.encode(samples)

    def closing(self) -> Iterable[Message]:
        yield b"EOS"

    def read(self, message: Message) -> Iterable[client.Event]:
        match _fields(message):
            case {"status": "error", "code": code, "message": reason}:
                raise client.ServerError(str(code), str(reason))
            case {"status": "complete"}:
                yield client.Done(audio_seconds=0.0)
            case {"text": str(text)}:
                yield client.Token(text=text)


class _TaggedText(Wire):
    """`/ws`, of Modal's example."""

    path = "/ws"
    formats = ("opus",)
    announces_ready = False
    ends_by_closing = True

    def __init__(self, format: Format, model: str | None) -> None:
        self._encoder = make_encoder("opus", SAMPLE_RATE_HZ)

    def audio(self, samples: NDArray[np.float32]) -> Iterable[Message]:
        if data := self._encoder.encode(samples):
            yield data

    def closing(self) -> Iterable[Message]:
        yield self._encoder.finish()
        yield "EOS"

    def read(self, message: Message) -> Iterable[client.Event]:
        if isinstance(message, str) or message[:1] != b"\x01":
            raise client.ProtocolViolation(f"expected 0x01 and text, got {shown(message)}")
        yield client.Token(text=message[1:].decode(errors="replace"))


WIRES: Mapping[str, type[Wire]] = {
    "moshi": _Moshi,
    "realtime": _Realtime,
    "transcribe": _Transcribe,
    "ws": _TaggedText,
}
"""By the dialect's name."""


class Conversation:
    """An open session in some dialect: send audio, read events up to `Done`."""

    def __init__(self, connection: ClientConnection, wire: Wire, timeout_s: float) -> None:
        self._connection = connection
        self._wire = wire
        self._timeout_s = timeout_s
        self._events: deque[client.Event] = deque()
        self._is_over = False

    async def send(self, samples: NDArray[np.float32]) -> None:
        """Send audio, float32 [n] at 24 kHz. Raises `ConnectionLost`, `ServerError` and `ServerSilent`."""
        await self._send(self._wire.audio(samples))

    async def end(self) -> None:
        """Say that no audio comes any more. Raises as `send` does."""
        await self._send(self._wire.closing())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> client.Event:
        """Wait for the next event. Raises `ServerError`, `ProtocolViolation`, `ServerSilent` and `ConnectionLost`."""
        if self._is_over:
            raise StopAsyncIteration
        while not self._events:
            self._events.extend(await self._receive())
        event = self._events.popleft()
        if isinstance(event, client.Ready):
            await self._send(self._wire.opening())
        self._is_over = isinstance(event, client.Done)
        return event

    async def _receive(self) -> Iterable[client.Event]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return self._wire.read(await self._connection.recv())
        except TimeoutError:
            raise client.ServerSilent(f"the server said nothing for {self._timeout_s:g} s") from None
        except ConnectionClosedOK as error:
            if not self._wire.ends_by_closing:
                raise self._told(error) from None
            return (client.Done(audio_seconds=0.0),)
        except ConnectionClosed as error:
            raise self._told(error) from None

    async def _send(self, messages: Iterable[Message]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                for message in messages:
                    await self._connection.send(message)
        except TimeoutError:
            raise client.ServerSilent(f"the server took no audio for {self._timeout_s:g} s") from None
        except ConnectionClosed as error:
            raise self._told(error) from None

    def _told(self, error: ConnectionClosed) -> client.ClientError:
        """Why it closed: a dialect whose errors have no code has it in the close frame, in front of the reason."""
        code, separator, reason = (error.rcvd.reason if error.rcvd else "").partition(": ")
        if separator and code.isidentifier():
            return client.ServerError(code, reason)
        return self._wire.failure or what_it_means(error)


@asynccontextmanager
async def connect(
    url: str,
    make_wire: Callable[[], Wire],
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    open_timeout_s: float = 10.0,
    timeout_s: float = 30.0,
) -> AsyncGenerator[Conversation]:
    """Open a session; leaving the block closes it. An address without a path means the dialect's own.

    Raises `InvalidAddress`, `ConnectionRefused`, `KeyRefused` and `ServerSilent`.
    """
    wire = make_wire()
    own_header = {"kyutai-api-key": api_key} if api_key else {}  # moshi-server knows no other
    address = stream_url(url, wire.query, wire.path)
    connection = await open_connection(address, api_key, open_timeout_s, {**headers, **own_header})
    try:
        yield Conversation(connection, wire, timeout_s)
    finally:
        await close_connection(connection)


def _packed(kind: str, **fields: object) -> bytes:
    return bytes(msgpack.packb({"type": kind, **fields}, use_single_float=True))


def _fields(message: Message) -> dict[str, Any]:
    try:
        fields = json.loads(message) if isinstance(message, str) else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise client.ProtocolViolation(f"expected a JSON object, got {shown(message)}")
    return fields
