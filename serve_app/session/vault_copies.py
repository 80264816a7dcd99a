"""Several vaults that all have every session, so that the loss of one of them costs nothing.

Whoever saves, saves to all of them. A vault that comes back empty, or is new, asks for each session whole at its next
checkpoint, as any vault does that lacks something; nothing is copied from one to the other. A vault that was silent is
told what is over, here or because it was taken from another one, before anything that it has is believed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from serve_app.session.vault import Answer, Checkpoint, NoVault, Saved, VaultClient, VaultUnavailable

REST_SECONDS = 5.0
"""A vault that did not answer is left alone for so long: each try may take as long as it takes to give up."""

MOST_UNTOLD = 10_000
"""Sessions that are over and of which one vault could not be told yet."""


class VaultCopies:
    """Reaches all copies as one vault (implements `VaultClient`)."""

    def __init__(self, copies: Sequence[VaultClient]) -> None:
        """All who reach them must name them in the same order: so they agree on who took a session last."""
        self._copies = list(copies)
        self._rests_until = [0.0] * len(self._copies)
        self._untold: list[dict[str, None]] = [{} for _ in self._copies]  # holds that are over; the oldest go first

    async def save(self, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str], over: Sequence[str]) -> Answer:
        """Save to all copies that answer; what none of them has is incomplete. Raises VaultUnavailable without any."""
        for number in range(len(self._copies)):
            self._note_over(number, over)
        awake = self._awake() or list(range(len(self._copies)))
        tried = await asyncio.gather(
            *(self._save(number, checkpoints, unchanged) for number in awake), return_exceptions=True
        )
        answers = [answer for answer in tried if isinstance(answer, Answer)]
        for failure in tried:
            if isinstance(failure, BaseException) and (not answers or not isinstance(failure, VaultUnavailable)):
                raise failure
        taken = dict.fromkeys(hold for answer in answers for hold in answer.taken)
        lacking = Counter(hold for answer in answers for hold in answer.incomplete if hold not in taken)
        return Answer(
            tuple(hold for hold, times in lacking.items() if times == len(answers)),
            tuple(taken),
            max(answer.sessions for answer in answers),
            max(answer.size_bytes for answer in answers),
            sum(answer.copies for answer in answers),
            tuple(hold for hold, times in lacking.items() if times < len(answers)),
            not any(self._untold),
        )

    async def take(self, token: str, owner: str, hold: str) -> Saved | None:
        """Take the session from every copy that has it; the one that has come furthest is it.

        None if no copy has it. Raises VaultUnavailable if no copy has it that answers, and another one does not.
        """
        found: dict[int, Saved] = {}
        unavailable: VaultUnavailable | None = None
        awake = self._awake()
        # One after the other: two who take the same session at once must come in the same order everywhere.
        for number in [*awake, *(number for number in range(len(self._copies)) if number not in awake)]:
            if found and number not in awake:
                break
            try:
                if self._untold[number]:
                    await self._save(number, [], [])
                saved = await self._copies[number].take(token, owner, hold)
            except NoVault:
                self._rest(number)
            except VaultUnavailable as error:
                self._rest(number)
                unavailable = error
            else:
                found |= {number: saved} if saved else {}
        if not found and unavailable:
            raise unavailable
        over = [name for saved in found.values() for name in saved.over]
        for number in range(len(self._copies)):
            known = found[number].over if number in found else ()
            self._note_over(number, [name for name in over if name not in known])
        return max(found.values(), key=lambda saved: saved.reach, default=None)

    async def _save(self, number: int, checkpoints: Sequence[Checkpoint], unchanged: Sequence[str]) -> Answer:
        """Save to one copy, and tell it what is over."""
        over = list(self._untold[number])
        try:
            answer = await self._copies[number].save(checkpoints, unchanged, over)
        except VaultUnavailable as error:
            self._rest(number)
            if isinstance(error, NoVault):
                self._untold[number].clear()
            raise
        for hold in over:
            self._untold[number].pop(hold, None)
        return answer

    def _note_over(self, number: int, holds: Sequence[str]) -> None:
        untold = self._untold[number]
        untold.update(dict.fromkeys(holds))
        while len(untold) > MOST_UNTOLD:
            del untold[next(iter(untold))]

    def _rest(self, number: int) -> None:
        self._rests_until[number] = time.monotonic() + REST_SECONDS

    def _awake(self) -> list[int]:
        now = time.monotonic()
        return [number for number, until in enumerate(self._rests_until) if until <= now]
