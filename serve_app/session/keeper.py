"""Saves sessions to the vault all the time, a little behind, so that an ingress that dies takes none of them along."""

import asyncio
import hashlib
import secrets
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from serve_app.session.session import Marks, Session
from serve_app.session.vault import Checkpoint, Saved, VaultClient, VaultUnavailable
from serve_app.telemetry import IngressMetrics, get_logger

_log = get_logger(__name__)

SAVE_SECONDS = 1.0
"""Age at which a session's checkpoint is renewed. A client sends again what came after it: its buffer holds 30 s."""

ROUND_SECONDS = 0.25
"""Time between two looks for sessions to save; each round saves those that are due, so the work is spread."""

LAST_SAVE_SECONDS = 4.0
"""How long it is tried to save a session whose client was cut off: a vault that died is back in two seconds."""

RENEWAL_SECONDS = 10.0
"""Time between two tries to save a session whole that the vault has lost: it may not have room for it."""

Progress: TypeAlias = tuple[Marks, tuple[int, int, bool], bool]
"""How far a session has come: its marks, what it has received, and whether its old token is spent."""

NOTHING: Progress = (Marks(), (-1, 0, False), False)

MOST_OVER = 10_000
"""Sessions that are over and of which the vault could not be told yet."""

TOKEN_BYTES = 24


class Kept:
    """A session in the care of a keeper."""

    def __init__(
        self, session: Session, credential: str, old_token: str | None = None, hold: str | None = None
    ) -> None:
        """`credential` is what the client showed of itself, `old_token` what it took the session with, as `hold`."""
        self.session = session
        self.hold = hold or new_hold()
        """Its name in the vault."""
        self.owner = digest(credential)
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        """What its client resumes it with, once."""
        self.old_token = old_token
        """Also good until the client is heard of again: it may never have got the new one."""
        self.spent_token: str | None = None
        """The old token, once it is good no more."""
        self.saved = NOTHING
        """How far the vault knows it."""
        self.was_offered = False
        """Whether the vault may know it at all."""
        self.due_at = 0.0
        self.saved_whole_at = -RENEWAL_SECONDS
        self.has_gap = False
        """Whether one of several vaults lacks its past."""

    def client_is_there(self) -> None:
        """The client was heard of, so it has the new token."""
        if self.old_token:
            self.spent_token, self.old_token = self.old_token, None
            self.due_at = 0.0

    @property
    def token_digests(self) -> tuple[str, ...]:
        """What the vault knows of its tokens."""
        return tuple(digest(token) for token in (self.token, self.old_token) if token)

    @property
    def progress(self) -> "Progress":
        """How far the session has come."""
        return self.session.marks, self.session.received, self.old_token is None


class Keeper:
    """Saves the sessions that it is given. All methods run in one event loop."""

    def __init__(self, vault: VaultClient, metrics: IngressMetrics, on_taken: Callable[[Kept], None]) -> None:
        """`on_taken(kept)` is called when a session goes on at another ingress."""
        self._vault = vault
        self._metrics = metrics
        self._on_taken = on_taken
        self._kept: dict[str, Kept] = {}  # by hold
        self._over: deque[str] = deque(maxlen=MOST_OVER)  # what is pushed out expires in the vault by itself
        self._saving = asyncio.Lock()
        self._available = True
        self._all_told = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start saving."""
        self._task = asyncio.create_task(self._save_for_ever(), name="keeper")

    async def stop(self) -> None:
        """Save no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, kept: Kept) -> None:
        """Keep this session from now on; it is saved at once."""
        self._kept[kept.hold] = kept

    async def let_go(self, kept: Kept) -> bool:
        """Save the session a last time, for whoever resumes it; it changes no more. False if that fails: it is lost."""
        deadline = time.monotonic() + LAST_SAVE_SECONDS
        while self._kept.get(kept.hold) is kept:
            async with self._saving:
                saved = await self._save([kept])
            if saved or time.monotonic() > deadline:
                return saved and self._kept.pop(kept.hold, None) is kept
            await asyncio.sleep(ROUND_SECONDS)
        return False  # somebody has it already

    def leave(self, kept: Kept) -> None:
        """Save the session no more; what the vault has of it stays there, for whoever resumes it."""
        self._kept.pop(kept.hold, None)

    def forget(self, kept: Kept) -> None:
        """The session is over."""
        if self._kept.pop(kept.hold, None) and kept.was_offered:
            self._over.append(kept.hold)

    async def take(self, token: str, credential: str, hold: str) -> Saved | None:
        """What the vault has for this token, to be held as `hold` from now on. Raises VaultUnavailable."""
        return await self._vault.take(digest(token), digest(credential), hold)

    async def _save_for_ever(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            async with self._saving:
                now = time.monotonic()
                due = [kept for kept in self._kept.values() if kept.due_at <= now and kept.session.can_go_on]
                if due or self._over or not self._all_told:
                    await self._save(due)

    async def _save(self, due: Sequence[Kept]) -> bool:
        """Save these sessions, and say which are over; whether that worked."""
        over = list(self._over)
        self._over.clear()
        started_at = time.monotonic()
        checkpoints: list[Checkpoint] = []
        unchanged: list[str] = []
        news: list[tuple[Kept, Progress]] = []
        failed = False
        for kept in due:
            kept.due_at = started_at + SAVE_SECONDS
            progress, saved = kept.progress, kept.saved
            if kept.has_gap and kept.saved_whole_at + RENEWAL_SECONDS <= started_at:
                saved, kept.saved_whole_at = NOTHING, started_at
            if progress == saved:
                unchanged.append(kept.hold)
                continue
            try:
                state, pieces = kept.session.checkpoint(saved[0])
            except Exception as error:  # our own mistake, which must not cost all other sessions their checkpoints
                _log.error("session cannot be saved", session_id=kept.session.id, exc_info=error)
                kept.due_at = started_at + RENEWAL_SECONDS
                failed = True
                continue
            kept.was_offered = True
            checkpoints.append(Checkpoint(kept.hold, kept.token_digests, kept.owner, state, pieces))
            news.append((kept, progress))
        try:
            answer = await self._vault.save(checkpoints, unchanged, over)
        except Exception as error:  # whatever it is: the next round must come, and bring what this one could not
            if not isinstance(error, VaultUnavailable):
                _log.error("saving failed", error=repr(error), exc_info=error)
            self._over.extendleft(reversed(over))
            self._metrics.vault_copies.set(0)
            self._note(False, str(error))
            return False
        self._note(True)
        self._all_told = answer.all_told
        for kept, progress in news:
            kept.saved = progress
            kept.has_gap = False
        for hold in answer.incomplete:
            self._renew(hold)
        for hold in answer.gaps:
            self._fill(hold)
        for hold in answer.taken:
            if kept_here := self._kept.pop(hold, None):
                self._on_taken(kept_here)
        self._metrics.vault_sessions.set(answer.sessions)
        self._metrics.vault_bytes.set(answer.size_bytes)
        self._metrics.vault_copies.set(answer.copies)
        self._metrics.checkpoint_seconds.observe(time.monotonic() - started_at)
        self._metrics.checkpoint_bytes_total.inc(
            sum(len(c.state) + sum(len(piece.data) for piece in c.pieces) for c in checkpoints)
        )
        return not failed and not answer.incomplete

    def _renew(self, hold: str) -> None:
        """The vault lacks this session's past: the next checkpoint brings everything, but not again and again."""
        if kept := self._kept.get(hold):
            kept.saved = NOTHING
            kept.due_at = max(0.0, kept.saved_whole_at + RENEWAL_SECONDS)
            kept.saved_whole_at = max(kept.due_at, time.monotonic())

    def _fill(self, hold: str) -> None:
        """One vault lacks this session's past, and gets everything now and then; the others are saved to as ever."""
        if kept := self._kept.get(hold):
            kept.has_gap = True
            kept.due_at = min(kept.due_at, kept.saved_whole_at + RENEWAL_SECONDS)

    def _note(self, available: bool, why: str = "") -> None:
        """Log when the vault comes or goes, not every try."""
        if available != self._available:
            log = _log.info if available else _log.warning
            log("sessions are saved again" if available else "sessions are not saved", reason=why)
        self._available = available
        if not available:
            self._metrics.checkpoint_failures_total.inc()


def new_hold() -> str:
    """A name for a session in somebody's hands."""
    return uuid.uuid4().hex


def digest(secret: str) -> str:
    """What stands for a secret where it must not be known."""
    return hashlib.sha256(secret.encode()).hexdigest()
