"""Who gets the next slot when all are taken: a bounded line, first come, first served."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from serve_app.errors import AtCapacity

RETRY_SECONDS = 0.1
"""Time between two tries of the first in line."""


MOST_TRIES = 8
"""Newcomers that try to take a slot at the same time; the others are next, or hear what those heard."""


class Returning:
    """Counts sessions that have lost their slot and look for another one: they come before everybody new."""

    def __init__(self) -> None:
        self.sessions = 0

    def __enter__(self) -> None:
        self.sessions += 1

    def __exit__(self, *_: object) -> None:
        self.sessions -= 1


class Admission:
    """The line in front of the engines, for clients who said that they would wait. All methods run in one event loop.

    Nobody overtakes: while somebody waits, or an open session has lost its slot, whoever would not wait is refused, and
    only the first in line tries.
    """

    def __init__(self, limit: int, returning: Returning) -> None:
        """At most `limit` clients wait."""
        self._limit = limit
        self._returning = returning
        self._line: deque[asyncio.Event] = deque()  # each is set when its owner has moved up
        self._trying = asyncio.Semaphore(MOST_TRIES)
        self._refusal: tuple[float, str] | None = None  # the latest: when that try began, and why it failed

    def __len__(self) -> int:
        """Clients waiting."""
        return len(self._line)

    async def enter(self, take_slot: Callable[[], Awaitable[None]], wait_s: float) -> AsyncGenerator[int]:
        """Take a slot, at once or in line; yields the place in line, from 1, whenever it changes. Ends in the slot.

        `take_slot` raises AtCapacity if there is none. Raises AtCapacity after `wait_s` seconds, at once if the line is
        full, and whatever else `take_slot` raises.
        """
        if not self._line and not self._returning.sessions:
            try:
                await self._try(take_slot)
                return
            except AtCapacity:
                if not wait_s:
                    raise
        if not wait_s:
            raise AtCapacity(f"{len(self._line) + self._returning.sessions} others wait for a slot already")
        if len(self._line) >= self._limit:
            raise AtCapacity(f"every slot is taken, and at most {self._limit} clients may wait for one")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        moved_up = asyncio.Event()
        self._line.append(moved_up)
        try:
            yield len(self._line)
            while self._line[0] is not moved_up:
                moved_up.clear()
                async with asyncio.timeout_at(deadline):
                    await moved_up.wait()
                yield self._line.index(moved_up) + 1
            while True:
                try:
                    if not self._returning.sessions:
                        await take_slot()
                        return
                except AtCapacity:
                    if loop.time() >= deadline:
                        raise
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise AtCapacity(f"no slot came free in {wait_s:g} s") from None
        finally:
            self._line.remove(moved_up)
            for waiting in self._line:
                waiting.set()

    async def _try(self, take_slot: Callable[[], Awaitable[None]]) -> None:
        """Take a slot; a try that began after this one came and has failed is an answer to this one, too.

        So a crowd that finds every slot taken costs the engines a few questions, and hears of it sooner.
        """
        clock = asyncio.get_running_loop().time
        came_at = clock()
        async with self._trying:
            if self._refusal and self._refusal[0] > came_at:
                raise AtCapacity(self._refusal[1])
            began_at = clock()
            try:
                await take_slot()
            except AtCapacity as error:
                self._refusal = max(self._refusal or (began_at, ""), (began_at, error.message))
                raise
