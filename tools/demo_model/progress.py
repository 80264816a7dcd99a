"""A progress bar in a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 20.0


class Progress:
    """Shows how far a stage is, with smoothed figures."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total, self._done = name, total, done
        self._figures: dict[str, float] = {}
        self._begun = self._said_at = time.monotonic()
        self._said = -1
        console = Console()
        self._bar: Bar | None = None
        if console.is_terminal:
            text = TextColumn("{task.description}")
            columns = (
                text,
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Bar(*columns, console=console)
            self._task = self._bar.add_task(name, total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done != self._said:
            self._say()

    def advance(self, figures: dict[str, float] | None = None, by: int = 1) -> None:
        """One step, or `by` of them, further."""
        self._done += by
        for key, value in (figures or {}).items():
            self._figures[key] = 0.98 * self._figures.get(key, value) + 0.02 * value
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=self._text())
        elif time.monotonic() - self._said_at > PLAIN_SECONDS:
            self._say()

    def _text(self) -> str:
        return " ".join(f"{key} {value:.3f}" for key, value in self._figures.items())

    def _say(self) -> None:
        self._said, self._said_at = self._done, time.monotonic()
        passed = self._said_at - self._begun
        print(f"{self._name}: {self._done}/{self._total}, {passed:.0f} s {self._text()}".rstrip(), flush=True)
