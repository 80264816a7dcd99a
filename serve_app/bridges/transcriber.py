"""Carries devices' sessions to the service and back, over its own protocol, as any client does.

A broken connection is made again by the client. Where a session is lost beyond that (its service was away for too long,
it had reached the longest duration), another one begins and hears the latest pieces again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from serve_app import client, errors
from serve_app.bridges.device import Answer, DeviceSession
from serve_app.bridges.order import Piece
from serve_app.client.sending import stop_sending
from serve_app.speech import SAMPLE_RATE_HZ
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 5.0

TURN_SECONDS = 30.0
"""How long a session keeps its turn at least while others wait for one: the next one hears its history again."""

MOST_TRIES: Mapping[str, int] = MappingProxyType(
    {
        **{
            error.code: 3
            for error in (errors.InvalidAudio, errors.AudioTooLong, errors.InvalidMessage, errors.MessageTooLarge)
        },
        # It may be the audio, or a broken engine, which takes a while to be replaced: 40 s go by.
        errors.StepFailed.code: 12,
    }
)
"""Errors that may be the audio's fault, and after how many in a row a piece is given up. The later half of the tries
sends it alone, so that no other piece is blamed. All other errors pass, sooner or later: good audio waits for that."""


class Live:
    """A session that grows while it is transcribed."""

    def __init__(self, history_seconds: float) -> None:
        self.session = DeviceSession(history_seconds)
        self.changed = asyncio.Event()
        """Something was added, or the session has ended."""
        self.answers = 0
        """How many of its pieces were answered."""
        self._stream: asyncio.Timeout | None = None

    def add(self, piece: Piece) -> None:
        """The next piece."""
        self.session.add(piece)
        self.changed.set()

    def add_before(self, piece: Piece) -> None:
        """One that was spoken before all others: the stream breaks off, so that the next one hears it first."""
        self.session.add_before(piece)
        self.changed.set()
        if self._stream:
            self._stream.reschedule(0)

    def end(self) -> None:
        """No more pieces come."""
        self.session.end()
        self.changed.set()

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """A stream of the session, until `add_before` breaks it off."""
        try:
            async with asyncio.timeout(None) as self._stream:
                yield
        except TimeoutError:
            if not (self._stream and self._stream.expired()):
                raise
        finally:
            self._stream = None


class Turns:
    """Lets so many sessions be transcribed at once, the others one after the other."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)
        self._waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn, first come, first served."""
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    @property
    def are_asked_for(self) -> bool:
        """Whether anybody waits."""
        return self._waiting > 0


class Transcriber:
    """Sessions with one service. Use it in one event loop."""

    def __init__(self, url: str, api_key: str | None, most_sessions: int) -> None:
        self._url = url
        self._api_key = api_key
        self._turns = Turns(most_sessions)
        self.model = "unknown"
        """What the service calls its model, once it has said so."""
        self.is_well = True
        """Whether the service took the last session that was brought to it, or only has no room just now."""
        self.sessions = 0
        """Sessions that are with the service now."""

    async def transcribe(
        self, live: Live, answered: Callable[[Answer], None], refused: Callable[[Piece, str], None]
    ) -> None:
        """Bring a session through to its end; every piece of it is answered, or refused with a reason."""
        session, tries, most_tries, wait_s = live.session, 0, 0, FIRST_RETRY_SECONDS
        while not session.is_over:
            live.changed.clear()
            if not session.is_waiting:
                await live.changed.wait()
                continue
            before, alone = live.answers, 2 * tries > most_tries
            try:
                async with self._turns.take(), live.streaming():
                    await self._try(live, answered, alone=alone)
                tries, wait_s = 0, FIRST_RETRY_SECONDS
                continue
            except client.ServerError as error:
                self.is_well, reason = True, str(error)
                may_be_the_audio = error.code in MOST_TRIES
                most_tries = MOST_TRIES.get(error.code, most_tries)
            except client.ClientError as error:
                self.is_well, reason = False, str(error)
                may_be_the_audio = False
            if live.answers > before:
                tries, wait_s = 0, FIRST_RETRY_SECONDS
            else:
                tries, wait_s = tries + may_be_the_audio, min(2 * wait_s, LONGEST_RETRY_SECONDS)
            _log.warning("session with the service lost", reason=reason, tries=tries)
            if alone and may_be_the_audio and tries >= most_tries and (piece := session.refuse()):
                refused(piece, f"the service failed on it {tries} times: {reason}")
                tries, wait_s = 0, FIRST_RETRY_SECONDS
            await asyncio.sleep(wait_s)

    async def _try(self, live: Live, answered: Callable[[Answer], None], *, alone: bool) -> None:
        """A stream for the session, from its history on, up to its end or the end of its turn; see `restart`."""
        session, began_at, before = live.session, time.monotonic(), live.answers
        session.restart(alone=alone)

        def tell(answers: Iterator[Answer]) -> None:
            for answer in answers:
                live.answers += 1
                answered(answer)

        async with client.connect(
            self._url, api_key=self._api_key, words=True, confidence=True, settled=True
        ) as stream:
            self.sessions += 1
            sending = asyncio.create_task(_send(stream, live))
            try:
                async for event in stream:
                    match event:
                        case client.Ready(model=model):
                            self.model, self.is_well = model, True
                        case client.Word(text=text, start=start, end=end, confidence=confidence):
                            session.hear(text, start, end, confidence)
                        case client.Settled(time=until_s):
                            tell(session.settle(until_s))
                        case client.Done():
                            tell(session.finish())
                    has_gained = live.answers > before
                    if self._turns.are_asked_for and has_gained and time.monotonic() - began_at > TURN_SECONDS:
                        return
            finally:
                self.sessions -= 1
                await stop_sending(sending)
                session.restart()


async def _send(stream: client.Stream, live: Live) -> None:
    session = live.session
    while True:
        live.changed.clear()
        while (audio := session.next_audio()) is not None:
            for start in range(0, len(audio), SAMPLE_RATE_HZ):
                await stream.send(audio[start : start + SAMPLE_RATE_HZ])
        if (audio := session.last_audio()) is not None:
            await stream.send(audio)
            await stream.end()
            return
        await live.changed.wait()
