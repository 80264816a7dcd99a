"""How far a long run has come, on stderr: a bar in a terminal, elsewhere a line now and then."""

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 60.0
"""Time between two lines about the same thing."""


class Progress:
    """Says what is being done, and how much of everything is done."""

    def __init__(self, text: str) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._text = text
        self._begun_at = time.monotonic()
        self._said: tuple[str, float] = ("", self._begun_at)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
        )
        self._has_bar = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._bar = Bar(*columns, console=self._console, disable=not self._has_bar)
        self._task = self._bar.add_task(text, total=None)
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        self._shown.enter_context(self._bar)
        self.tell(0.0, self._text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._shown.close()

    def tell(self, share: float, text: str) -> None:
        """`share` of everything is done, from 0 to 1, and `text` is what comes now."""
        self._bar.update(self._task, completed=share, total=1.0 if share else None, description=text)
        now = time.monotonic()
        said, at = self._said
        if self._has_bar or (text == said and now - at < PLAIN_SECONDS):
            return
        self._said = text, now
        line = f"{now - self._begun_at:5.0f} s  {share:4.0%}  {text}"
        self._console.print(line, markup=False, soft_wrap=True)
