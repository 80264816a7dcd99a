"""How many real-time streams a running service carries: sessions that speak sample clips, their words checked.

    python -m loadtest.streams --url ws://127.0.0.1:8000/v1/stream --streams 1,8,32

One line for each number of streams: the delay of words' first tokens (from the word's start in the audio to the token's
arrival), the word error rate, sessions that failed, and how late the generator itself was.
"""

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import jiwer
import numpy as np
import typer
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from serve_app import client
from serve_app.samples import Clip, load_clips, word_delays_s
from serve_app.speech import SAMPLE_RATE_HZ

LONGEST_CLIP_S = 30.0


@dataclass
class Outcome:
    """What a number of sessions saw."""

    token_delays_s: list[float] = field(default_factory=list)
    lateness_s: list[float] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    hypotheses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    streams: int
    token_delay_p50_s: float
    token_delay_p99_s: float
    wer: float
    failures: int
    generator_late_p99_s: float


async def speak(url: str, clips: Iterator[Clip], seconds: float, start_s: float, outcome: Outcome) -> None:
    """Hold sessions one after the other, each with one clip, until `seconds` of audio were spoken."""
    await asyncio.sleep(start_s)
    spoken = 0.0
    while spoken < seconds:
        clip = next(clips)
        spoken += len(clip.samples) / SAMPLE_RATE_HZ
        pace, heard, tokens = client.Pace(), [], []
        try:
            async for arrival in client.transcribe(url, clip.samples, words=True, pace=pace):
                if isinstance(arrival.event, client.Token) and arrival.event.text.startswith(" "):
                    tokens.append((arrival.event.text.strip(), arrival.at_s))
                if isinstance(arrival.event, client.Word):
                    heard.append(arrival.event.text)
        except client.ClientError as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(1.0)
            continue
        outcome.references.append(clip.text)
        outcome.hypotheses.append(" ".join(heard))
        outcome.lateness_s += pace.lateness_s
        outcome.token_delays_s += word_delays_s(clip.words, tokens)


async def measure(url: str, streams: int, seconds: float, clips: list[Clip]) -> tuple[Row, list[str]]:
    """Run `streams` sessions side by side, at random phases."""
    draw = random.Random(streams)

    def endless() -> Iterator[Clip]:
        while True:
            yield draw.choice(clips)

    outcome = Outcome()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(speak(url, endless(), seconds, draw.uniform(0, 2), outcome))

    def percentile(values: list[float], percent: float) -> float:
        return float(np.percentile(values, percent)) if values else float("nan")

    row = Row(
        streams=streams,
        token_delay_p50_s=percentile(outcome.token_delays_s, 50),
        token_delay_p99_s=percentile(outcome.token_delays_s, 99),
        wer=float(jiwer.wer(outcome.references, outcome.hypotheses)) if outcome.references else float("nan"),
        failures=len(outcome.failures),
        generator_late_p99_s=percentile(outcome.lateness_s, 99),
    )
    return row, outcome.failures


def main(
    url: Annotated[str, typer.Option(help="Where the service is.")] = "ws://127.0.0.1:8000/v1/stream",
    streams: Annotated[str, typer.Option(help="Numbers of streams, one run each.")] = "1,8,16,32",
    seconds: Annotated[float, typer.Option(min=1, help="Audio that each stream speaks.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per run.")] = False,
) -> None:
    """Measure a running service with real-time streams."""
    try:
        counts = [int(count) for count in streams.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--streams: expected numbers with commas, got {streams!r}") from None
    clips = load_clips(LONGEST_CLIP_S)
    if not as_json:
        print(f"{'streams':>8} {'token delay p50':>16} {'p99':>8} {'WER':>7} {'failed':>7} {'generator late p99':>19}")
    for count in counts:
        columns = (SpinnerColumn(), "{task.description}", TimeElapsedColumn())
        with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
            progress.add_task(f"{count} streams")
            row, failures = asyncio.run(measure(url, count, seconds, clips))
        if as_json:
            print(json.dumps({**asdict(row), "reasons": sorted(set(failures))}))
            continue
        print(
            f"{row.streams:8} {row.token_delay_p50_s:14.3f} s {row.token_delay_p99_s:6.3f} s {row.wer:7.3f} "
            f"{row.failures:7} {row.generator_late_p99_s:17.3f} s"
        )
        for reason in sorted(set(failures)):
            print(f"         {reason}")


if __name__ == "__main__":
    typer.run(main)
