"""A few streams side by side against one service, and what their delays come to: what `stt latency` runs."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app import client
from serve_app.measuring.hearing import Hearing
from serve_app.measuring.speaking import Manner, Outcome, hold, reason
from serve_app.samples import Clip


@dataclass
class StreamRun:
    """One stream of one run, filled while it goes on."""

    number: int
    """From 1."""
    clip: Clip
    outcome: Outcome
    hearing: Hearing = field(default_factory=Hearing)
    is_over: bool = False


Show = Callable[[Sequence[StreamRun]], None]
"""Is told of the streams that are about to begin, and once more of each that is over."""


async def run_streams(clips: Sequence[Clip], manner: Manner, streams: int, show: Show) -> list[StreamRun]:
    """Run so many streams at once, each with the next clip.

    A stream that fails says so in its outcome; but raises `ConnectionRefused` and `InvalidAddress` if nobody is there.
    """
    chosen = [clips[number % len(clips)] for number in range(streams)]
    runs = [StreamRun(number, clip, Outcome(clip.file, clip.seconds)) for number, clip in enumerate(chosen, 1)]
    show(runs)

    async def run(stream: StreamRun) -> None:
        try:
            await hold(stream.clip, manner, stream.outcome, stream.hearing)
        except (client.ConnectionRefused, client.InvalidAddress):
            raise
        except (client.ClientError, TimeoutError) as error:
            stream.outcome.failure = reason(error)
        stream.is_over = True
        show([stream])

    tasks = [asyncio.create_task(run(stream)) for stream in runs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return runs


def summarise(runs: Sequence[StreamRun], streams: int, rtf: float) -> dict[str, Any]:
    """The numbers of all runs together, as `stt latency --json` prints them."""
    outcomes = [run.outcome for run in runs]
    done = [outcome for outcome in outcomes if outcome.failure is None]
    words = sum(outcome.words for outcome in done)
    return {
        "streams": streams,
        "rtf": rtf,
        "first_token_s": spread(outcome.first_token_s for outcome in done if outcome.first_token_s is not None),
        "word_delay_s": spread(delay for outcome in done for _, delay in outcome.word_delays),
        "wer": round(sum(outcome.word_errors for outcome in done) / words, 5) if words else None,
        "failures": len(outcomes) - len(done),
    }


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Least, mean, median and 95th percentile in seconds; None without values."""
    found = list(values)
    if not found:
        return dict.fromkeys(("min", "avg", "p50", "p95"))
    middle, high = np.percentile(found, (50, 95))
    numbers = {"min": min(found), "avg": sum(found) / len(found), "p50": float(middle), "p95": float(high)}
    return {name: round(number, 4) for name, number in numbers.items()}
