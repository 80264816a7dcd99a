"""What every kind of harm works with."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loadtest.chaos.outcome import Outcome
from loadtest.chaos.service import Service

BEFORE_HARM_SECONDS = 5.0
"""Every session speaks by then."""

BETWEEN_HARMS_SECONDS = 4.0
"""For the sessions to settle, once everything runs again."""

WORTH_HARMING_SECONDS = 8.0
"""With less audio left than this, a further disturbance would hit sessions that are ending."""


@dataclass
class Attack:
    """What a scenario works on."""

    service: Service
    outcome: Outcome
    ends_at: float
    """When the sessions have said everything, by `time.monotonic`, if nothing holds them up."""
    say: Callable[[str], None]

    @property
    def time_left_s(self) -> float:
        """Audio that the sessions still have to say, in seconds."""
        return self.ends_at - time.monotonic()

    def problem(self, text: str) -> None:
        """Note something that went wrong."""
        self.outcome.problems.append(text)

    def note(self, text: str) -> None:
        """Note something that is worth knowing."""
        self.outcome.notes.append(text)


async def repeat(attack: Attack, harm: Callable[[], Awaitable[None]]) -> None:
    """Do it once, and again while there is time."""
    await asyncio.sleep(BEFORE_HARM_SECONDS)
    await harm()
    await asyncio.sleep(BETWEEN_HARMS_SECONDS)
    while attack.time_left_s > WORTH_HARMING_SECONDS:
        await harm()
        await asyncio.sleep(BETWEEN_HARMS_SECONDS)
