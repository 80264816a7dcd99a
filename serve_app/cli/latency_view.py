"""What `stt latency` shows: its streams while they run, on a terminal; a line each elsewhere; tables of results."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from serve_app.measuring.hearing import differences, same
from serve_app.measuring.latency import Show, StreamRun

REFRESH_HZ = 8
STATISTICS = ("min", "avg", "p50", "p95")


@contextmanager
def showing(console: Console, title: str, quiet: bool) -> Iterator[Show]:
    """Show the streams that the block runs."""
    if quiet:
        yield lambda runs: None
    elif not console.is_terminal:
        console.print(title, highlight=False)
        yield _print_what_is_over
    else:
        board = _Board(title)
        with Live(board, console=console, refresh_per_second=REFRESH_HZ):
            yield board.add


def print_summary(console: Console, name: str, summary: dict[str, Any], reasons: Sequence[str]) -> None:
    """The numbers of one service."""
    for what, title in (("first_token_s", "first token"), ("word_delay_s", "word delay")):
        numbers = " ".join(f"{statistic} {_seconds(summary[what][statistic])}" for statistic in STATISTICS)
        console.print(f"{name}{title}: {numbers}", highlight=False, markup=False)
    wer = "unknown" if summary["wer"] is None else f"{summary['wer']:.3f}"
    console.print(f"{name}WER {wer}, {summary['failures']} failed", highlight=False, markup=False)
    for text in sorted(set(reasons)):
        console.print(f"{name}{text}", highlight=False, markup=False)


def print_comparison(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """One line per service: `name`, then its summary or `error`, and `price_per_stream_hour` where that is known."""
    with_price = any("price_per_stream_hour" in row for row in rows)
    headings = ["", "first token avg", "p50", "p95", "word delay avg", "p50", "p95", "WER", "failed"]
    cells = [[*headings, *(["price per stream-hour"] if with_price else [])]]
    for row in rows:
        if "error" in row:
            cells.append([row["name"], row["error"]])
            continue
        numbers = [_seconds(row[what][name]) for what in ("first_token_s", "word_delay_s") for name in STATISTICS[1:]]
        wer = "" if row["wer"] is None else f"{row['wer']:.3f}"
        price = row.get("price_per_stream_hour")
        prices = ["" if price is None else f"${price:.4f}"] if with_price else []
        cells.append([row["name"], *numbers, wer, str(row["failures"]), *prices])
    if not console.is_terminal:
        for line in cells:
            print("\t".join(line))
        return
    table = Table(*(Column(heading, justify="right" if heading else "left") for heading in cells[0]), box=None)
    for line in cells[1:]:
        table.add_row(*line)
    console.print(table)


class _Board:
    """The streams of the run that goes on."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._runs: list[StreamRun] = []
        self._began = time.monotonic()

    def add(self, runs: Sequence[StreamRun]) -> None:
        """Show these; those that are over are shown already."""
        if not any(run.is_over for run in runs):
            self._runs = list(runs)
            self._began = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As it is now."""
        table = Table("", "words", "first token", "word delay", box=None, title=self._title, expand=True)
        table.columns[1].ratio = 1
        for run in self._runs:
            table.add_row(str(run.number), _words(run), _seconds(run.outcome.first_token_s), _delays(run))
        yield table


def _print_what_is_over(runs: Sequence[StreamRun]) -> None:
    for run in runs:
        if run.is_over:
            print(f"{run.number}: {run.clip.file}: {_line(run)}", flush=True)


def _line(run: StreamRun) -> str:
    outcome = run.outcome
    if outcome.failure:
        return outcome.failure
    wrong = f", {outcome.word_errors} of {outcome.words} words wrong" if outcome.words else ""
    return f"first token {_seconds(outcome.first_token_s)}, word delay {_delays(run)}{wrong}"


def _words(run: StreamRun) -> Text:
    """What was heard: right words green, wrong ones red; what was said instead, or is still to be heard, is dim."""
    if run.outcome.failure:
        return Text(run.outcome.failure, "red")
    heard = run.hearing.words
    if not run.clip.words:
        return Text(" ".join(word.text for word in heard))
    pairs = differences(run.clip.words, heard)
    still_to_come = 0 if run.is_over else next((n for n, (_, got) in enumerate(reversed(pairs)) if got), len(pairs))
    text = Text()
    for number, (said, got) in enumerate(pairs):
        if number >= len(pairs) - still_to_come:
            text.append(f"{said} ", "dim")
        elif said and got and same(said, got):
            text.append(f"{got} ", "green")
        else:
            text.append(f"{got} " if got else "", "red")
            text.append(f"{said} " if said else "", "dim strike")
    return text


def _delays(run: StreamRun) -> str:
    delays = [delay for _, delay in run.outcome.word_delays]
    return f"p50 {np.median(delays):.2f} s p95 {np.percentile(delays, 95):.2f} s" if delays else ""


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
