"""One streaming session, seen from the client."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from websockets.exceptions import ConnectionClosed

from serve_app.client.address import stream_url
from serve_app.client.connection import may_resume, open_connection, what_it_means
from serve_app.client.encoding import Format, check_format, declaration, make_encoder
from serve_app.client.errors import (
    ClientError,
    ConnectionRefused,
    KeyRefused,
    ProtocolViolation,
    ServerError,
    ServerSilent,
)
from serve_app.client.events import (
    Done,
    Event,
    Failure,
    Flushed,
    Ping,
    Ready,
    Status,
    Token,
    TurnEnd,
    Word,
)
from serve_app.client.line import Line
from serve_app.client.send_buffer import Control, SendBuffer
from serve_app.speech import SAMPLE_RATE_HZ

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0

RESTARTING = "restarting"
"""Error of a server that goes away, while another one takes its sessions."""

UNKNOWN_SESSION = "unknown_session"
"""Error of a server that does not have the session that is to be resumed."""

PASSING_FAILURES = (RESTARTING, "not_ready", "at_capacity", "too_many_sessions", "too_many_connections")
"""Errors of a server that may take the session a moment later."""


class _NotYet(Exception):
    """The server would take the session up again later."""


class _Never(Exception):
    """The session cannot go on, however often it is tried."""


class Stream:
    """An open session: send audio, read events.

    Sending and reading are independent and usually happen in two tasks. Reading ends after `Done`; every other end
    of the session raises. A connection that breaks is made again, and the session goes on where it was: what the server
    has not taken is sent again, what was not read comes again, nothing comes twice, but for `Pauses`.
    """

    def __init__(self, line: Line, reconnect: "Reconnect", resume_s: float) -> None:
        """`resume_s` is how long a broken connection may take to be made again; 0: it is not."""
        self._line = line
        self._reconnect = reconnect
        self._resume_s = resume_s
        self._sent = SendBuffer()
        self._ready: Ready | None = None
        self._ready_was_read = False
        self._earlier_token: str | None = None
        self._last_seq = 0
        self._restoring = asyncio.Lock()
        self._given_up = False
        self._done = False
        self.reconnects = 0
        """How often the connection was made again."""

    async def send(self, samples: ArrayLike) -> None:
        """Send audio: float32, mono, 24 kHz, any number of samples; a copy is kept in case it must be sent again.

        Raises `ServerSilent` where the server takes nothing for the timeout, `ConnectionLost`, `ValueError` for samples
        of any other shape, and `RuntimeError` after `end`. What a server had to say before it went away is still there
        to be read.
        """
        array = np.array(samples, "<f4")
        if array.ndim != 1:
            raise ValueError(f"expected one dimension of samples, got {array.ndim}")
        await self._send(array)

    async def flush(self) -> None:
        """Ask for everything said so far; `Flushed` tells when it is out, and the session goes on."""
        await self._send("flush")

    async def end(self) -> None:
        """Say that no audio comes any more: the rest of the text comes, then `Done`."""
        await self._send("end")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event.

        Raises `ServerError` for an error the server reports, `ProtocolViolation`, `ServerSilent` where not even a ping
        comes for the timeout, and `ConnectionLost` where the connection ends without `Done` and cannot be resumed.
        """
        if self._done:
            raise StopAsyncIteration
        while True:
            match await self._receive():
                case Ping():
                    continue
                case Failure() as failure:
                    raise _reported(failure)
                case Token() | Word() | TurnEnd() | Flushed() | Done() as event:
                    if event.seq is not None:
                        if event.seq <= self._last_seq:
                            continue
                        self._last_seq = event.seq
                    self._done = isinstance(event, Done)
                    return event
                case other:
                    return other

    async def close(self) -> None:
        """Close the connection; the session is over for the server too."""
        await self._line.close()

    async def _send(self, what: NDArray[np.float32] | Control) -> None:
        if self._sent.ended:
            raise RuntimeError("expected nothing to be sent after the end of the audio, as end() has said it")
        self._sent.add(what)
        line = self._line
        try:
            await line.send(what)
        except ConnectionClosed as error:
            await self._restore(line, what_it_means(error), may_resume(error))  # which sends it again
        except ServerSilent as error:
            await self._restore_silent(line, error)

    async def _receive(self) -> Event | Ping | Failure:
        """The next message, over whichever connection it comes."""
        while True:
            if self._ready and not self._ready_was_read:
                self._ready_was_read = True
                return self._ready
            line = self._line
            try:
                message = await line.receive()
            except ConnectionClosed as error:
                await self._restore(line, what_it_means(error), may_resume(error))
                continue
            except ServerSilent as error:
                await self._restore_silent(line, error)
                continue
            match message:
                case Ready():
                    self._ready = message
                case Failure(code=code) if code == RESTARTING and self._resume_s:
                    await self._restore(line, _reported(message), worth_it=True)
                case _:
                    return message

    async def _restore_silent(self, line: Line, error: ServerSilent) -> None:
        """Not even a ping came, or nothing was taken: the network may swallow everything."""
        await self._restore(line, error, worth_it=bool(self._ready and self._ready.resume_token))

    async def _restore(self, broken: Line, error: ClientError, worth_it: bool) -> None:
        """Make the connection again and send what the server lacks. Raises `error` where that is not possible."""
        async with self._restoring:
            if self._line is not broken:
                return  # the other task has done it
            await broken.close()
            deadline = time.monotonic() + self._resume_s
            wait_s = FIRST_RETRY_S
            worth_it = worth_it and not self._done and not self._given_up
            while worth_it and time.monotonic() + wait_s <= deadline:
                try:
                    self._line = await self._go_on()
                    self.reconnects += 1
                    return
                except (KeyRefused, _Never):
                    break
                except (ConnectionRefused, ServerSilent, ConnectionClosed, _NotYet):
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            self._given_up = True
            raise error from None

    async def _go_on(self) -> Line:
        """One try: a new connection on which everything that the server lacked was sent.

        A session that the server has lost, or had not begun, is begun again if all of its audio is still here: its
        events have the same numbers, so that those read before are known. A server that died right after it had given
        us our token has told nobody of it: then the token before is still good.
        """
        token = self._ready.resume_token if self._ready else None
        if self._ready and token is None:
            raise _Never  # a server that cannot resume
        line = await self._reconnect(token, self._last_seq)
        try:
            answer = await self._first_answer(line)
            if _is_unknown(answer) and self._earlier_token:
                await line.close()
                token = self._earlier_token
                line = await self._reconnect(token, self._last_seq)
                answer = await self._first_answer(line)
            if _is_unknown(answer) and self._sent.after(0, 0, False):
                await line.close()
                line = await self._reconnect(None, 0)
                answer = await self._first_answer(line)
            if isinstance(answer, Failure):
                raise _NotYet if answer.code in PASSING_FAILURES else _Never
            received = answer.received
            taken = (received.samples, received.flushes, received.end) if received else (0, 0, False)
            missing = self._sent.after(*taken)
            if missing is None:
                raise _Never
            self._ready, self._earlier_token = answer, token
            while missing:
                taken = self._sent.total
                for what in missing:
                    await line.send(what)
                missing = self._sent.after(*taken)  # what the other task has sent meanwhile
        except BaseException:
            await line.close()
            raise
        return line

    async def _first_answer(self, line: Line) -> Ready | Failure:
        """What the server says to a new connection, once it is our turn."""
        while True:
            match await line.receive():
                case Ready() | Failure() as answer:
                    return answer
                case Status() | Ping():
                    continue
                case other:
                    raise ProtocolViolation(f"expected ready or an error, got {other.type}")


class Reconnect(Protocol):
    """Opens a connection that takes a session up again, or begins it again."""

    def __call__(self, resume_token: str | None, last_seq: int) -> Awaitable[Line]:
        """Raises what `connect` raises."""


@asynccontextmanager
async def connect(
    url: str,
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    words: bool = False,
    confidence: bool = False,
    pauses: bool = False,
    settled: bool = False,
    model: str | None = None,
    wait_s: float = 0.0,
    format: Format = "f32",
    sample_rate: int = SAMPLE_RATE_HZ,
    open_timeout_s: float = 10.0,
    timeout_s: float = 25.0,
    resume_s: float = 60.0,
) -> AsyncGenerator[Stream]:
    """Open a session; leaving the block closes it, whatever its state.

    `url` is `ws://…`, `http://…` or `host:port`; without a path it means `/v1/stream`. With `words` the server also
    sends `Word` events, with `confidence` how sure the model is of each, with `pauses` a `Pauses` and with `settled` a
    `Settled` event for each frame. `model` is one of those that the service has, None for its first. With `wait_s` the
    session waits so long in line where every slot is taken. `format` and `sample_rate` are how the audio travels: s16
    takes half of f32's bytes, mulaw a quarter, opus a twenty-fourth; opus has its own rate.
    `headers` are sent along, for whatever guards the service. `timeout_s` bounds the wait for each message either way,
    `resume_s` the time spent on getting a broken connection back (0: none).

    Raises `ValueError` for a format that the client does not make, `InvalidAddress`, `ConnectionRefused`, `KeyRefused`
    and `ServerSilent`.
    """
    check_format(format, sample_rate)
    wishes = declaration(format, sample_rate)
    flags = {"words": words, "confidence": confidence, "pauses": pauses, "settled": settled}
    wishes |= {name: "true" for name, wished in flags.items() if wished}
    if model:
        wishes["model"] = model
    if wait_s:
        wishes["wait_s"] = f"{wait_s:g}"
    if resume_s:
        wishes["resumable"] = "true"

    async def open_line(wishes: dict[str, str], timeout: float) -> Line:
        connection = await open_connection(stream_url(url, wishes), api_key, timeout, headers)
        return Line(connection, make_encoder(format, sample_rate), timeout_s)

    async def reconnect(resume_token: str | None, last_seq: int) -> Line:
        resuming = {"resume": resume_token, "last_seq": str(last_seq)} if resume_token else {}
        return await open_line(wishes | resuming, min(open_timeout_s, resume_s))

    stream = Stream(await open_line(wishes, open_timeout_s), reconnect, resume_s)
    try:
        yield stream
    finally:
        await stream.close()


def _is_unknown(answer: Ready | Failure) -> bool:
    return isinstance(answer, Failure) and answer.code == UNKNOWN_SESSION


def _reported(failure: Failure) -> ServerError:
    return ServerError(failure.code, failure.message, failure.retry_after_s)
