"""Engines that follow the sessions, on a real Serve: from none to some and back, with every word checked.

`python -m loadtest.scaling` starts a service of its own that has no engine while nobody speaks, lets sessions come and
go by a fixed plan, and fails if one of them is refused or dropped, if words are missing, or if the number of engines
does not go up to `--engines` and back to none.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
import websockets
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from loadtest.chaos.service import Service, ServiceMisbehaves, started
from serve_app import client
from serve_app.cli.failure import FAILED
from serve_app.cli.server import StartFailed
from serve_app.measuring.hearing import word_errors
from serve_app.samples import Clip, load_clips
from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ

SLOTS = 4
"""Per engine."""

WINDOW_S = 10.0
"""The engines' `scaledown_window_seconds`."""

LONGEST_CLIP_S = 15.0

MOST_WRONG_SHARE = 0.03
"""Words that may be wrong: clips follow each other without a pause, and the demo model mishears a little."""

LOOK_S = 1.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Look:
    """How things are at one moment."""

    at_s: float
    sessions: int
    engines: int
    headroom: float
    """The least of any connected engine; 1 without any."""


@dataclass
class Result:
    """What came of the plan."""

    sessions: int = 0
    words: int = 0
    words_wrong: int = 0
    failures: list[str] = field(default_factory=list)
    first_word_cold_s: float = 0.0
    """Of the first session, which finds no engine and speaks all the same, from its first sample."""
    first_word_longest_s: float = 0.0
    most_engines: int = 0
    moves: int = 0
    """Sessions that left an engine that was stopped."""
    problems: list[str] = field(default_factory=list)
    course: list[Look] = field(default_factory=list)


def planned(engines: int, seconds: float) -> list[tuple[float, float]]:
    """Start and length of each session: for a while as many as `engines` have slots, then two, which need one engine.

    The latest is likely to get the newest engine, and outlives it.
    """
    crowd = [(seconds / 3, seconds / 3)] * (engines * SLOTS - 2)
    return [(0.0, 2 * seconds), *crowd, (seconds / 3 + 2.0, 4 / 3 * seconds)]


async def talk(url: str, start_s: float, seconds: float, clips: list[Clip], result: Result, *, cold: bool) -> None:
    """One session: clips one after the other, in real time; a `cold` one does not wait for its slot."""
    await asyncio.sleep(start_s)
    spoken: list[Clip] = []
    length = 0.0
    for clip in cycle(clips):
        spoken.append(clip)
        length += len(clip.samples) / SAMPLE_RATE_HZ
        if length >= seconds:
            break
    samples = np.concatenate([clip.samples for clip in spoken])
    result.sessions += 1
    heard: list[str] = []
    begun_at, first_word_s = time.monotonic(), 0.0
    words = _words_from_the_first_moment(url, samples) if cold else _words(url, samples)
    try:
        async for word in words:
            heard.append(word)
            first_word_s = first_word_s or time.monotonic() - begun_at
    except (client.ClientError, websockets.WebSocketException) as error:
        result.failures.append(f"{type(error).__name__}: {error}")
        return
    errors, said = word_errors(" ".join(clip.text for clip in spoken), " ".join(heard))
    result.words += said
    result.words_wrong += errors
    result.first_word_longest_s = max(result.first_word_longest_s, first_word_s)
    if cold:
        result.first_word_cold_s = first_word_s


async def _words(url: str, samples: NDArray[np.float32]) -> AsyncIterator[str]:
    """What is heard by a client that waits for its slot before it speaks."""
    async for arrival in client.transcribe(url, samples, rtf=1.0, words=True):
        if isinstance(arrival.event, client.Word):
            yield arrival.event.text


async def _words_from_the_first_moment(url: str, samples: NDArray[np.float32]) -> AsyncIterator[str]:
    """What is heard by a client that speaks at once, as microphones do: the service has to keep it."""
    async with websockets.connect(f"{url}?words=true", ping_timeout=None) as connection:

        async def speak() -> None:
            begun_at = time.monotonic()
            for start in range(0, len(samples), FRAME_SAMPLES):
                await asyncio.sleep(begun_at + start / SAMPLE_RATE_HZ - time.monotonic())
                await connection.send(samples[start : start + FRAME_SAMPLES].tobytes())
            await connection.send('{"type": "end"}')

        speaking = asyncio.create_task(speak())
        try:
            async for message in connection:
                event = json.loads(message)
                if event["type"] == "word":
                    yield event["text"]
                if event["type"] == "error":
                    raise client.ServerError(event["code"], event["message"])
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)


async def watch(service: Service, course: list[Look]) -> None:
    """Add a look a second until cancelled."""
    started_at = time.monotonic()
    while True:
        try:
            status, engines = await service.status(), len(await service.replicas("engine"))
        except (httpx.HTTPError, LookupError, ValueError):
            await asyncio.sleep(LOOK_S)
            continue
        headroom = min((load["headroom"] for load in status["engines"].values()), default=1.0)
        at_s = round(time.monotonic() - started_at, 1)
        course.append(Look(at_s, status["sessions_open"], engines, round(headroom, 3)))
        await asyncio.sleep(LOOK_S)


async def ramp(service: Service, engines: int, seconds: float) -> Result:
    """Go through the plan, and wait until no engine is left."""
    result = Result()
    clips = load_clips(LONGEST_CLIP_S)
    await service.wait_for_replicas("engine", 0)  # the ingress woke one to learn about the model
    watching = asyncio.create_task(watch(service, result.course))
    try:
        async with asyncio.TaskGroup() as group:
            for number, (start_s, length_s) in enumerate(planned(engines, seconds)):
                shifted = clips[number % len(clips) :] + clips[: number % len(clips)]
                group.create_task(talk(service.url, start_s, length_s, shifted, result, cold=number == 0))
        result.moves = await service.moves("draining")
        await service.wait_for_replicas("engine", 0)
        await asyncio.sleep(2 * LOOK_S)
    except ServiceMisbehaves as error:
        result.problems.append(str(error))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    result.most_engines = max((look.engines for look in result.course), default=0)
    if result.most_engines != engines:
        result.problems.append(f"expected up to {engines} engines, got {result.most_engines}")
    if not any(look.engines == 1 and look.sessions and before.engines > 1 for before, look in pairwise(result.course)):
        result.problems.append("expected one engine again while somebody speaks, got more or none")
    result.problems += [f"a session failed: {failure}" for failure in result.failures]
    if result.words_wrong > MOST_WRONG_SHARE * result.words:
        result.problems.append(f"{result.words_wrong} of {result.words} words are wrong")
    return result


def draw(file: Path, course: list[Look]) -> None:
    """Sessions, engines and headroom over time."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    at_s = [look.at_s for look in course]
    names = {"sessions": "sessions", "engines": "running engines", "headroom": "least headroom"}
    for axes, (name, label) in zip(figure.subplots(3, sharex=True), names.items(), strict=True):
        axes.step(at_s, [getattr(look, name) for look in course], where="post")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.set_xlabel("seconds")
    figure.savefig(file, dpi=120)


@app.command()
def main(
    engines: Annotated[int, typer.Option(min=1, max=8, help="Engines at the height of the plan.")] = 3,
    seconds: Annotated[float, typer.Option(min=30, help="How long the crowd takes to come and go.")] = 90,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw sessions, engines and headroom into this file.")] = None,
) -> None:
    """Let sessions come and go on a service whose engines follow them, and check that nobody notices."""
    scaling = {"max_replicas": engines, "scaledown_window_seconds": WINDOW_S, "lead_seconds": WINDOW_S}
    folder = Path(tempfile.mkdtemp(prefix="stt-scaling-"))
    try:
        with started(SLOTS, {"engine": {"autoscaling": scaling}}, folder / "log.txt") as service:
            Console(stderr=True).print("the service is up; waiting for its engines to go", highlight=False)
            result = asyncio.run(ramp(service, engines, seconds))
    except (StartFailed, ServiceMisbehaves) as error:
        result = Result(problems=[str(error)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if plot and result.course:
        draw(plot, result.course)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print(result)
    raise typer.Exit(FAILED if result.problems else 0)


def _print(result: Result) -> None:
    before = None
    for look in result.course:
        if (look.sessions, look.engines) != before:
            print(f"{look.at_s:6.1f} s  {look.sessions:3} sessions  {look.engines} engines")
        before = look.sessions, look.engines
    print(f"{result.sessions} sessions, {len(result.failures)} failed, {result.moves} moved off a stopped engine")
    print(f"{result.words} words, {result.words_wrong} wrong")
    print(
        f"first word of the first session, which found no engine: {result.first_word_cold_s:.1f} s after it came;"
        f" of any session: at most {result.first_word_longest_s:.1f} s"
    )
    for problem in result.problems:
        print(f"PROBLEM: {problem}")


if __name__ == "__main__":
    app()
