"""Where sessions survive their ingress: their latest checkpoints, kept by another process until somebody resumes them.

The vault understands nothing of what it keeps. A session is saved piece by piece: each checkpoint brings its small
state whole, and of its growing records (audio, results, events) only what is new.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """A stretch of one of a session's records."""

    start: int
    stop: int
    floor: int
    """What lies before this place of the record is not needed any more."""
    data: bytes
    """Empty if there is no news."""


class Checkpoint(NamedTuple):
    """A session at one moment, as far as it is news since its last checkpoint."""

    hold: str
    """Names this session in the hands of this ingress; whoever resumes it holds it under another name."""
    tokens: tuple[str, ...]
    """What takes the session, once: the digests of its resume tokens."""
    owner: str
    """Who may take it: the digest of what the client showed of itself."""
    state: bytes
    pieces: tuple[Piece, ...]
    """The news of each of the session's records, always in the same order."""


class Saved(NamedTuple):
    """A session as it was at its last checkpoint."""

    state: bytes
    records: tuple[tuple[bytes, ...], ...]
    """The data of each record's pieces that are still needed, in order."""
    reach: tuple[int, ...] = ()
    """How far each record goes: of two copies of a session the later one goes further."""
    over: tuple[str, ...] = ()
    """Holds under which nobody has the session any more, now that it was taken."""


class Answer(NamedTuple):
    """What whoever saves sessions must know."""

    incomplete: tuple[str, ...]
    """Holds of which the vault lacks the past: their next checkpoint must bring everything."""
    taken: tuple[str, ...]
    """Holds of sessions that go on elsewhere: they are over here."""
    sessions: int
    """Sessions in the vault."""
    size_bytes: int
    """Memory that their data take."""
    copies: int = 1
    """Vaults that have answered."""
    gaps: tuple[str, ...] = ()
    """Holds that are complete in one vault, and of which another one lacks the past."""
    all_told: bool = True
    """Whether every vault knows what is over; otherwise it is told with the next call that it answers."""


class VaultClient(Protocol):
    """A vault as an ingress reaches it: in another process, or in tests in this one."""

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """See `Vault.save`. Raises VaultUnavailable."""

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """See `Vault.take`. Raises VaultUnavailable."""


class VaultUnavailable(Exception):
    """The vault did not answer in time, or is gone; what it held may be lost."""


class NoVault(VaultUnavailable):
    """There is no such vault: it holds nothing."""


@dataclass
class _Entry:
    tokens: tuple[str, ...]
    owner: str
    state: bytes
    records: list[list[Piece]]
    saved_at: float
    size: int = 0
    heir: str | None = None
    """The hold that it was handed out to."""


class Vault:
    """Keeps sessions for a while after their last sign of life. Not thread-safe; every call is short."""

    def __init__(self, keep_seconds: float, capacity_bytes: int) -> None:
        """At most `capacity_bytes` are kept: beyond, the sessions without a sign of life for longest go first."""
        self._keep_seconds = keep_seconds
        self._capacity_bytes = capacity_bytes
        self._entries: dict[str, _Entry] = {}  # by hold, the one saved longest ago first
        self._holds: dict[str, str] = {}  # by token
        self._taken: dict[str, float] = {}  # holds, and when: who had them may not know yet
        self._ancestors: dict[str, str] = {}  # holds that were handed out and not saved since, by their heirs
        self._bytes = 0
        self.used_at = time.monotonic()
        """When the vault was last called."""

    def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """Keep checkpoints, note that other sessions are alive and `unchanged`, and forget those that are `over`."""
        self.used_at = time.monotonic()
        for hold in over:
            self._drop(self._ancestors.get(hold, ""))
            self._drop(hold)
            self._taken[hold] = self.used_at  # who has it still, because this is told late, cannot bring it back
        incomplete = [hold for hold in unchanged if not self._touch(hold)]
        incomplete += [checkpoint.hold for checkpoint in checkpoints if not self._keep(checkpoint)]
        self._expire()
        incomplete += [checkpoint.hold for checkpoint in checkpoints if checkpoint.hold not in self._entries]
        asked = [*unchanged, *(checkpoint.hold for checkpoint in checkpoints)]
        taken = tuple(hold for hold in asked if hold in self._taken)
        lacking = tuple(hold for hold in dict.fromkeys(incomplete) if hold not in self._taken)
        return Answer(lacking, taken, len(self._entries), self._bytes)

    def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """Hand a session out, to its owner alone, who holds it as `hold` from now on. None if there is no such session.

        Whoever had it must let go. It stays here until it is first saved under its new hold, so that a taker who dies
        before that loses nothing: then the token still works, and the latest taker has the session.
        """
        self.used_at = time.monotonic()
        self._expire()
        old = self._holds.get(token, "")
        entry = self._entries.get(old)
        if entry is None or entry.owner != owner:
            return None
        self._taken[old] = self.used_at
        over = tuple(name for name in (old, entry.heir) if name)
        if entry.heir:
            self._ancestors.pop(entry.heir, None)
            self._taken[entry.heir] = self.used_at
        entry.heir = hold
        self._ancestors[hold] = old
        self._touch(old)
        records = (tuple(piece.data for piece in record if piece.data) for record in entry.records)
        return Saved(entry.state, tuple(records), tuple(record[-1].stop for record in entry.records), over)

    def _touch(self, hold: str) -> bool:
        entry = self._entries.pop(hold, None)
        if entry is None:
            return False
        entry.saved_at = self.used_at
        self._entries[hold] = entry
        return True

    def _keep(self, checkpoint: Checkpoint) -> bool:
        """Add a checkpoint to what is there; False, keeping nothing, if something between the two is missing."""
        if checkpoint.hold in self._taken:
            return True
        old = self._entries.get(checkpoint.hold)
        self._drop(checkpoint.hold)
        records = []
        for number, piece in enumerate(checkpoint.pieces):
            known = old.records[number] if old else []
            if piece.start <= piece.floor:  # complete by itself
                known = []
            elif not known or known[-1].stop != piece.start:
                return False
            needed = [kept for kept in (*known, piece) if kept.stop > piece.floor and kept.stop > kept.start]
            records.append(needed or [piece])  # the latest says where the record stands, even if it is empty
        entry = _Entry(checkpoint.tokens, checkpoint.owner, checkpoint.state, records, self.used_at)
        entry.size = len(entry.state) + sum(len(piece.data) for record in records for piece in record)
        self._entries[checkpoint.hold] = entry
        self._holds.update(dict.fromkeys(entry.tokens, checkpoint.hold))
        self._bytes += entry.size
        if ancestor := self._ancestors.pop(checkpoint.hold, None):
            self._drop(ancestor)
        return True

    def _drop(self, hold: str) -> None:
        entry = self._entries.pop(hold, None)
        if entry:
            for token in entry.tokens:
                if self._holds.get(token) == hold:  # an heir may have it by now
                    del self._holds[token]
            if entry.heir:
                self._ancestors.pop(entry.heir, None)
            self._bytes -= entry.size

    def _expire(self) -> None:
        """Forget what nobody has come back for, and the oldest of what does not fit."""
        too_old = self.used_at - self._keep_seconds
        while self._entries:
            hold, entry = next(iter(self._entries.items()))
            if entry.saved_at >= too_old and self._bytes <= self._capacity_bytes:
                break
            self._drop(hold)
        while self._taken:
            hold, taken_at = next(iter(self._taken.items()))
            if taken_at >= too_old:
                break
            del self._taken[hold]
