"""Hours of churn: sessions that come, speak or misbehave, and go, while the service's processes are watched.

`python -m loadtest.soak --minutes 60` starts a service of its own, keeps it busy with sessions of 1 to 30 seconds, and
fails if a word is wrong, or if memory, open files or tasks still grow after the warm-up, or something stays held at
the end.
"""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import psutil
import typer
import websockets

from loadtest.chaos import rude
from loadtest.chaos.leaks import count_leaked_slots
from loadtest.chaos.service import Service, ServiceMisbehaves, started
from loadtest.progress import Progress
from serve_app import client
from serve_app.cli.failure import FAILED
from serve_app.measuring.hearing import word_errors
from serve_app.samples import Clip, choose_clips

WARM_UP_SHARE = 0.34
"""Share of the time after which nothing may grow any more: until then, caches fill and allocators find their size."""

LOOKS = 120
"""How often the processes are looked at, over the whole time."""

GROWTH_LIMITS = {"memory_bytes": 24 * 2**20, "open_files": 12, "tasks": 12}
"""Growth, from the median of the second third of the time to that of the last, that still counts as flat."""

MOST_WRONG_SHARE = 0.02
"""Words that may be wrong: the demo model mishears a little when a clip begins at an odd moment."""

POLITE_SHARE = 0.5
"""Share of the sessions that speak a clip; the others come and go as `loadtest.chaos.rude` describes."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Result:
    """What an hour of churn did to the service."""

    minutes: float
    sessions: int = 0
    words: int = 0
    words_wrong: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    growth: dict[str, dict[str, int]] = field(default_factory=dict)
    """By process and by what is counted: how much more there is of it in the last third than in the second."""
    slots_leaked: int = 0
    problems: list[str] = field(default_factory=list)


class Churn:
    """Sessions without end, so many at once."""

    def __init__(self, url: str, at_once: int, result: Result) -> None:
        self._url = url
        self._at_once = at_once
        self._result = result
        self._draw = random.Random(at_once)
        self._clips = choose_clips()
        self._outcomes: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Keep going for so long, then let the last ones end."""
        ends_at = time.monotonic() + seconds

        async def one_after_another() -> None:
            while time.monotonic() < ends_at:
                await self._one()

        await asyncio.gather(*(one_after_another() for _ in range(self._at_once)))
        self._result.outcomes = dict(self._outcomes)

    async def _one(self) -> None:
        self._result.sessions += 1
        if self._draw.random() < POLITE_SHARE:
            self._outcomes[await self._speak(self._draw.choice(self._clips))] += 1
            return
        try:
            answer = await rude.come_and_go(self._url, self._draw)
            self._outcomes[answer.partition(":")[0]] += 1  # of an error the code
        except (TimeoutError, OSError, websockets.WebSocketException) as error:
            self._outcomes[f"{type(error).__name__}: {error}"] += 1

    async def _speak(self, clip: Clip) -> str:
        try:
            arrivals = [arrival async for arrival in client.transcribe(self._url, clip.samples, rtf=1.0, words=True)]
        except client.ServerError as error:
            return error.code
        except client.ClientError as error:
            return f"{type(error).__name__}: {error}"
        heard = [arrival.event.text for arrival in arrivals if isinstance(arrival.event, client.Word)]
        errors, words = word_errors(clip.text, " ".join(heard))
        self._result.words += words
        self._result.words_wrong += errors
        return "done"


async def look(service: Service, looks: dict[str, list[dict[str, int]]]) -> None:
    """Add what every process holds now."""
    held = (await service.status())["held"]
    for deployment in ("ingress", "engine"):
        for number, replica in enumerate(await service.replicas(deployment), 1):
            with_tasks = {"tasks": held["tasks"]} if deployment == "ingress" else {}
            try:
                counts = {"memory_bytes": replica.process.memory_info().rss, "open_files": replica.process.num_fds()}
            except psutil.Error as error:
                raise ServiceMisbehaves(f"{deployment} {number} went away: {error}") from error
            looks.setdefault(f"{deployment} {number}", []).append(counts | with_tasks)


def growth(looks: list[dict[str, int]]) -> dict[str, int]:
    """How much more the last third of the looks shows than the second one, by their medians."""
    settled = looks[int(len(looks) * WARM_UP_SHARE) :]
    middle, last = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    return {
        what: round(median(counts[what] for counts in last) - median(counts[what] for counts in middle))
        for what in looks[0]
    }


async def soak(service: Service, sessions: int, minutes: float, progress: Progress) -> Result:
    """Churn for so long, watching."""
    result = Result(minutes)
    seconds = minutes * 60
    looks: dict[str, list[dict[str, int]]] = {}
    churning = asyncio.create_task(Churn(service.url, sessions, result).run(seconds))
    started_at = time.monotonic()
    while not churning.done():
        try:
            await look(service, looks)
        except (httpx.HTTPError, ServiceMisbehaves) as error:
            result.problems.append(f"the service could not be looked at: {error!r}")
        progress.tell(min(1.0, (time.monotonic() - started_at) / seconds), "churning")
        await asyncio.wait([churning], timeout=seconds / LOOKS)
    await churning
    progress.tell(1.0, "looking for leaks")
    result.growth = {process: growth(counts) for process, counts in looks.items()}
    for process, grown in result.growth.items():
        for what, more in grown.items():
            if more > GROWTH_LIMITS[what]:
                result.problems.append(f"{process}: {what} grew by {more:,}, expected at most {GROWTH_LIMITS[what]:,}")
    for outcome in result.outcomes.keys() - {"done", "gone", "invalid_message", "invalid_audio"}:
        result.problems.append(f"{result.outcomes[outcome]} sessions: {outcome}")
    if result.words_wrong > MOST_WRONG_SHARE * result.words:
        result.problems.append(f"{result.words_wrong} of {result.words} words are wrong")
    result.slots_leaked = await count_leaked_slots(service)
    held = (await service.status())["held"]
    for what in ("sessions", "clients_waiting", "leases", "session_tasks"):
        if held[what]:
            result.problems.append(f"{held[what]} {what} are held although nobody is there")
    return result


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long.")] = 60,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Keep a service busy with sessions of 1 to 30 seconds, and fail if anything of it still grows after a while."""
    folder = Path(tempfile.mkdtemp(prefix="stt-soak-"))
    try:
        with Progress("starting a service") as progress, started(sessions, {}, folder / "log.txt") as service:
            result = asyncio.run(soak(service, sessions, minutes, progress))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    passed = not result.problems and not result.slots_leaked
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print(result)
    raise typer.Exit(0 if passed else FAILED)


def _print(result: Result) -> None:
    print(f"{result.sessions} sessions in {result.minutes:g} minutes: {result.outcomes}")
    print(f"words: {result.words}, wrong: {result.words_wrong}; slots leaked: {result.slots_leaked}")
    for process, grown in result.growth.items():
        described: dict[str, Any] = {what: f"{more:+,}" for what, more in grown.items()}
        print(f"{process}: growth after the warm-up: {described}")
    for problem in result.problems:
        print(f"PROBLEM: {problem}")


if __name__ == "__main__":
    app()
