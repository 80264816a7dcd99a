"""A session's events in order, numbered, kept for a reader that may come back for those it missed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, NamedTuple, TypeVar

from serve_app.errors import SlowClient, SpeechError

Event = TypeVar("Event")


class _Entry(NamedTuple, Generic[Event]):
    place: int
    number: int
    event: Event


class EventLog(Generic[Event]):
    """The latest `capacity` events, read by one reader at a time; a reader that is replaced must be cancelled.

    Events that are not *numbered* (passing remarks about the session itself) take no number, so that a client's count
    of what it has seen depends on what was said alone.
    """

    def __init__(self, capacity: int) -> None:
        self._entries: deque[_Entry[Event]] = deque(maxlen=capacity)
        self._capacity = capacity
        self._places = 0
        self._read = 0  # the reader's next place
        self._error: SpeechError | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self.last_number = 0
        """Number of the latest numbered event."""

    @property
    def unread(self) -> int:
        """Events that no reader has taken yet."""
        return self._places - self._read

    def append(self, event: Event, numbered: bool = True) -> None:
        """Add an event. Raises SlowClient if that would push out one that was never read."""
        if self.unread >= self._capacity:
            raise SlowClient(f"expected the client to read its events, {self.unread} are waiting")
        self.last_number += numbered
        self._entries.append(_Entry(self._places, self.last_number, event))
        self._places += 1
        self._arrived.set()

    def fail(self, error: SpeechError) -> None:
        """End the log: readers get the rest, then this error."""
        self._error = self._error or error
        self._arrived.set()
        self._taken.set()

    def has_all_after(self, number: int) -> bool:
        """Whether every event after the one with this number is still here (and that one has happened)."""
        oldest = self._entries[0] if self._entries else None
        return number <= self.last_number and (oldest is None or oldest.place == 0 or oldest.number <= number)

    async def read(self, after: int | None = None) -> AsyncIterator[tuple[int, Event]]:
        """Events with their numbers: those not read yet, or all after the one with the number `after`.

        Ends only with the error the log has failed with, which it raises.
        """
        if after is not None:
            later = [entry.place for entry in self._entries if entry.number > after]
            self._read = later[0] if later else self._places
        while True:
            while self.unread:
                entry = self._entries[self._read - self._entries[0].place]
                self._read += 1
                self._taken.set()
                yield entry.number, entry.event
            if self._error:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()

    async def wait_until_half_read(self) -> None:
        """Return when at least half of the capacity is free, or the log has failed."""
        while self.unread > self._capacity // 2 and not self._error:
            self._taken.clear()
            await self._taken.wait()
