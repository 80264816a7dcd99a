"""A table for people, and what a run that is kept is called."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from loadtest.engine.result import Result
from loadtest.engine.stages import STAGES

NARROWEST = 150
"""Columns of text that the table needs; a narrower terminal wraps the lines itself."""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _stages(side: dict[str, Any]) -> str:
    return " + ".join(_number(side[f"{stage}_p50_ms"]) for stage in (*STAGES, "rest"))


def _of(side: str, key: str) -> Callable[[dict[str, Any]], str]:
    return lambda load: _number(load[side][key]) if load[side] else "-"


def _agreement(load: dict[str, Any]) -> str:
    if not load["tokens_compared"]:
        return "-"
    wrong = load["tokens_different"]
    text = f"{wrong} of {load['tokens_compared']} differ" if wrong else f"{load['tokens_compared']} equal"
    return f"{text}, {load['near_ties']} ties" if load["near_ties"] else text


COLUMNS: Sequence[tuple[str, Callable[[dict[str, Any]], str]]] = (
    ("streams", lambda load: str(load["streams"])),
    ("session", lambda load: load["age"]),
    ("load", lambda load: load["load"]),
    ("ours p50 ms", _of("ours", "step_p50_ms")),
    ("p99", _of("ours", "step_p99_ms")),
    ("codec + decoder + rest", lambda load: _stages(load["ours"]) if load["load"] == "aligned" else ""),
    ("moshi p50 ms", _of("moshi", "step_p50_ms")),
    ("p99", _of("moshi", "step_p99_ms")),
    (
        "codec + decoder + rest",
        lambda load: _stages(load["moshi"]) if load["moshi"] and load["load"] == "aligned" else "",
    ),
    ("ours ms/s", _of("ours", "compute_ms_per_audio_s")),
    ("moshi ms/s", _of("moshi", "compute_ms_per_audio_s")),
    ("ratio", lambda load: "-" if load["ratio"] is None else f"{load['ratio']:.2f}"),
    ("ours wait+step p99", _of("ours", "wait_and_step_p99_ms")),
    ("moshi wait+step p99", _of("moshi", "wait_and_step_p99_ms")),
    ("tokens", _agreement),
)
"""`ms/s` is compute time per second of audio; times of steps and stages are medians and 99th percentiles."""


def print_table(result: Result) -> None:
    """A table on a terminal, lines elsewhere; below it the summary."""
    fields = result.as_fields()
    rows = [[value(load) for _, value in COLUMNS] for load in fields["loads"]]
    headings = [heading for heading, _ in COLUMNS]
    console = Console(highlight=False)
    if console.is_terminal:
        console.width = max(console.width, NARROWEST)
        table = Table(*(Column(heading.replace(" ", "\n"), justify="right") for heading in headings), box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        for row in [headings, *rows]:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"streams in real time ({result.age} context, random phases): {fields['realtime_streams']}")
    print(f"memory per stream: {result.bytes_per_stream / 1e6:.2f} MB")
    print(
        f"this machine: {fields['device']}: copies {result.machine.bytes_per_s / 1e9:.1f} GB/s, "
        f"multiplies {result.machine.operations_per_s / 1e9:.0f} GFLOP/s"
    )
    if fields["floor_share"] is not None:
        print(f"share of the arithmetic floor reached, most streams, aligned: {fields['floor_share']:.3f}")


def name_of(fields: dict[str, Any]) -> str:
    """What to call a run that is kept: the same for the same model on the same device."""
    name = f"engine-{fields['model']}-{fields['device']}".lower()
    return "-".join(re.findall(r"[a-z0-9]+", name))
