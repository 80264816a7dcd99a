"""What a scenario did to the sessions, in numbers, and whether that is acceptable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from loadtest.chaos.comparing import compare, pause_s, word_delay_p99_s
from loadtest.chaos.sessions import Heard


@dataclass
class Outcome:
    """One scenario's result; the fields in the order of the JSON object."""

    scenario: str
    sessions: int
    sessions_lost: int = 0
    words_lost: int = 0
    words_doubled: int = 0
    words_changed: int = 0
    pause_p50_s: float = 0.0
    pause_p95_s: float = 0.0
    pause_max_s: float = 0.0
    word_delay_p99_s: float = 0.0
    """From a word's end in the audio to its arrival."""
    undisturbed_word_delay_p99_s: float = 0.0
    slots_leaked: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    """What else went wrong, for people: why sessions were lost, what the service did not do in time."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and not wrong."""

    def add_sessions(self, undisturbed: Sequence[Heard], disturbed: Sequence[Heard]) -> None:
        """Count what these sessions lost."""
        pauses = []
        for number, (before, after) in enumerate(zip(undisturbed, disturbed, strict=True)):
            difference = compare(before.words, after.words)
            self.words_lost += difference.lost
            self.words_doubled += difference.doubled
            self.words_changed += difference.changed
            pauses.append(pause_s(after, difference))
            if after.error:
                self.sessions_lost += 1
                self.problems.append(f"session {number}: {after.error}")
        self.pause_p50_s, self.pause_p95_s = (round(float(p), 3) for p in np.percentile(pauses, (50, 95)))
        self.pause_max_s = round(max(pauses), 3)
        before_s, after_s = word_delay_p99_s(undisturbed), word_delay_p99_s(disturbed)
        self.undisturbed_word_delay_p99_s, self.word_delay_p99_s = before_s, after_s
        self.notes.append(f"p99 word delay {before_s:.2f} s undisturbed, {after_s:.2f} s disturbed")
        self.notes.append(f"the sessions were told of {sum(len(after.migrations_s) for after in disturbed)} moves")

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, changed, leaked or otherwise wrong."""
        losses = (self.sessions_lost, self.words_lost, self.words_doubled, self.words_changed, self.slots_leaked)
        return not any(losses) and not self.problems

    def as_fields(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
