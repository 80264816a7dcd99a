"""How the program talks: progress to stderr, results to stdout, a table for people or JSON for scripts."""

import json
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Column, Table

from loadtest.chaos.outcome import Outcome

COLUMNS: Sequence[tuple[str, Callable[[Outcome], object]]] = (
    ("scenario", lambda outcome: outcome.scenario),
    ("sessions", lambda outcome: outcome.sessions),
    ("lost", lambda outcome: outcome.sessions_lost),
    ("words lost", lambda outcome: outcome.words_lost),
    ("doubled", lambda outcome: outcome.words_doubled),
    ("changed", lambda outcome: outcome.words_changed),
    ("pause p50 s", lambda outcome: f"{outcome.pause_p50_s:.2f}"),
    ("p95 s", lambda outcome: f"{outcome.pause_p95_s:.2f}"),
    ("max s", lambda outcome: f"{outcome.pause_max_s:.2f}"),
    ("slots leaked", lambda outcome: outcome.slots_leaked),
    ("refused", lambda outcome: outcome.refused),
    ("", lambda outcome: "ok" if outcome.passed else "FAILED"),
)
NARROWEST = 90
"""Columns of text that the table needs; a narrower terminal wraps the lines itself."""


class Progress:
    """Says what is going on, to stderr: nothing here takes less than a few seconds."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._console = Console(stderr=True, highlight=False)

    def scenario(self, name: str) -> Callable[[str], None]:
        """What a scenario tells its progress to."""
        return lambda text: self._console.print(
            f"{time.monotonic() - self._started_at:5.0f} s  {name}: {text}", markup=False, soft_wrap=True
        )


def print_json(outcome: Outcome) -> None:
    """One object on one line."""
    print(json.dumps(outcome.as_fields(), ensure_ascii=False), flush=True)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """A table on a terminal, lines elsewhere; below it what was wrong and what is worth knowing."""
    rows = [[str(value(outcome)) for _, value in COLUMNS] for outcome in outcomes]
    headings = [heading for heading, _ in COLUMNS]
    console = Console(highlight=False)
    if console.is_terminal:
        console.width = max(console.width, NARROWEST)
        table = Table(*(Column(heading.replace(" ", "\n"), justify="right") for heading in headings), box=None)
        for outcome, row in zip(outcomes, rows, strict=True):
            table.add_row(*row, style=None if outcome.passed else "red")
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        for row in [headings, *rows]:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for outcome in outcomes:
        for text in outcome.problems:
            print(f"{outcome.scenario}: PROBLEM: {text}")
        for text in outcome.notes:
            print(f"{outcome.scenario}: {text}")
