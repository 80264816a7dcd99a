"""A session's events in order, numbered, kept for a reader that may come back for those it missed."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from serve_app.errors import SlowClient, SpeechError

Event = TypeVar("Event")


class Entry(NamedTuple, Generic[Event]):
    """An event in its place."""

    place: int
    number: int
    """Number of the latest numbered event up to here."""
    numbered: bool
    event: Event


class EventLog(Generic[Event]):
    """The latest `capacity` events, read by one reader at a time; a reader that is replaced must be cancelled.

    Events that are not *numbered* (passing remarks about the session itself) take no number, so that a client's count
    of what it has seen depends on what was said alone.
    """

    def __init__(self, capacity: int, entries: Sequence[Entry[Event]] = (), last_kind: type | None = None) -> None:
        """`entries` are those of a log that this one continues.

        An event of `last_kind`, which ends the log, is told even to a reader that claims to have seen it: it would wait
        for ever.
        """
        self._last_kind = last_kind
        self._entries: deque[Entry[Event]] = deque(entries, maxlen=capacity)
        self._capacity = capacity
        # When each entry was added; those of a continued log have no such time here.
        self._added_at: deque[float | None] = deque([None] * len(self._entries), maxlen=capacity)
        self._read = 0  # the reader's next place
        self.read_added_at: float | None = None
        """When the event that the reader took last was added, on the monotonic clock; None if elsewhere."""
        self._seen = 0  # number of the last event that the reader has no use for
        self._error: SpeechError | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self.places = entries[-1].place + 1 if entries else 0
        """Events so far, numbered or not."""
        self.last_number = entries[-1].number if entries else 0
        """Number of the latest numbered event."""

    @property
    def unread(self) -> int:
        """Events that no reader has taken yet."""
        return self.places - self._read

    def append(self, event: Event, numbered: bool = True) -> None:
        """Add an event. Raises SlowClient if that would push out one that was never read."""
        if self.unread >= self._capacity:
            raise SlowClient(f"expected the client to read its events, {self.unread} are waiting")
        self.last_number += numbered
        self._entries.append(Entry(self.places, self.last_number, numbered, event))
        self._added_at.append(time.monotonic())
        self.places += 1
        self._arrived.set()

    def fail(self, error: SpeechError) -> None:
        """End the log: readers get the rest, then this error."""
        self._error = self._error or error
        self._arrived.set()
        self._taken.set()

    def since(self, place: int) -> list[Entry[Event]]:
        """The entries from this place on that are still here."""
        return [entry for entry in self._entries if entry.place >= place]

    def can_go_on_after(self, number: int) -> bool:
        """Whether every event after the one with this number is still here, or yet to come.

        A log that continues another one may lack the very last events that its reader saw: those come again.
        """
        oldest = self._entries[0] if self._entries else None
        has_rest = oldest is None or oldest.place == 0 or oldest.number <= number
        return has_rest and number <= self.last_number + self._capacity

    def ends_with(self, kind: type, number: int) -> bool:
        """Whether the last event is of this kind, and its number no higher than that."""
        last = self._entries[-1] if self._entries else None
        return last is not None and isinstance(last.event, kind) and last.number <= number

    def seek(self, number: int) -> None:
        """Have the reader go on behind the event with this number, which may be one that is yet to come."""
        self._seen = number
        later = [entry.place for entry in self._entries if entry.number > number]
        self._read = later[0] if later else self.places

    async def read(self) -> AsyncIterator[tuple[int, Event]]:
        """Events not read yet, with their numbers.

        Ends only with the error the log has failed with, which it raises.
        """
        while True:
            while self.unread:
                index = self._read - self._entries[0].place
                entry, self.read_added_at = self._entries[index], self._added_at[index]
                self._read += 1
                self._taken.set()
                is_last = self._last_kind is not None and isinstance(entry.event, self._last_kind)
                if entry.number > self._seen or not entry.numbered or is_last:
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
