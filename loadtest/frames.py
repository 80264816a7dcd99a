"""How long a frame is on its way through the service, without the model's step.

    python -m loadtest.frames --sessions 48 --seconds 40

One session sends a frame each 80 ms and asks for every frame's result (`?pauses=true`); others speak beside it, from
another process. What is measured is the time from before a frame is sent until its result is there, in the client:
the socket both ways, HAProxy, the ingress, the link, and the wait for others to share a step. The step's own median, as
the engine tells it meanwhile, is taken off.
"""

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import httpx
import numpy as np
import typer
from rich.console import Console

from loadtest.own_service import own_service
from loadtest.progress import Progress
from serve_app import client
from serve_app.cli.failure import FAILED, fail
from serve_app.cli.server import StartFailed
from serve_app.client.address import http_url, shown, stream_url
from serve_app.samples import choose_clips
from serve_app.settings import PROJECT_ROOT
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS

BEGIN_SECONDS = 20.0
"""How long the sessions beside may take until each has a slot."""

LOOK_SECONDS = 1.0
"""Time between two looks at what the engines tell."""

SPOKEN_SECONDS = "20-40"
"""How long each session beside speaks; then the next one comes."""

SPEAKER = ("-m", "loadtest.speaker")
"""What Python runs to hold the sessions beside."""

LONGEST_LINE = 2**20
"""Bytes of what the speaker tells of one session."""

T = TypeVar("T")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(min=0, help="Sessions that speak beside the measured one.")] = 48,
    seconds: Annotated[float, typer.Option(min=5, help="How long to measure.")] = 40.0,
    url: Annotated[str, typer.Option(help="A service that runs; without it one is started.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure the way of one session's frames through the service while others speak."""
    try:
        if url:
            stream_url(url)  # before anything is shown to be under way
        with Progress("asking the service" if url else "starting the service") as progress:
            if url:
                figures = asyncio.run(_measure(url, sessions, seconds, progress))
            else:
                with own_service() as own:
                    figures = asyncio.run(_measure(own, sessions, seconds, progress))
    except (StartFailed, client.ClientError, _Unusable) as error:
        fail(error, FAILED)
    if as_json:
        print(json.dumps(figures))
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{figures['frames']} frames of one session, {sessions} others speaking: on the way for"
        f" {figures['way_p50_ms']:.1f} ms (p50), {figures['way_p99_ms']:.1f} ms (p99),"
        f" without their step, of which the median, {figures['step_p50_ms']:.1f} ms, is taken off"
    )


class _Unusable(Exception):
    """The service, or the process that speaks beside, does not do what is needed to measure."""


class _Engines:
    """What a service's engines tell of themselves."""

    def __init__(self, url: str) -> None:
        """Raises InvalidAddress."""
        self._address = http_url(url, "/status")
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> "_Engines":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self) -> list[tuple[int, float]]:
        """The slots used and the median step in seconds, of each engine. Raises _Unusable."""
        name = shown(self._address)
        try:
            answer = await self._http.get(self._address)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Unusable(f"{name}: no answer ({str(error) or type(error).__name__})") from None
        try:
            loads = answer.json()["engines"].values()
            return [(int(load["slots_used"]), float(load["step_p50_seconds"])) for load in loads]
        except (ValueError, TypeError, LookupError, AttributeError):
            raise _Unusable(
                f"{name}: expected engines with slots_used and step_p50_seconds,"
                f" got HTTP {answer.status_code} and {answer.text[:80]!r}"
            ) from None

    async def wait_until_used(self, slots: int) -> None:
        """Return once so many slots are used. Raises _Unusable after `BEGIN_SECONDS`."""
        until = time.monotonic() + BEGIN_SECONDS
        while (used := sum(used for used, _ in await self.ask())) < slots:
            if time.monotonic() > until:
                raise _Unusable(
                    f"{shown(self._address)}: expected {slots} sessions beside to have slots within"
                    f" {BEGIN_SECONDS:g} s, got {used} slots used"
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def watch(self, steps_s: list[float]) -> NoReturn:
        """Add the engines' median steps to the list, now and then, until cancelled. Raises _Unusable."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            steps_s += [step_s for _, step_s in await self.ask()]


async def _measure(url: str, sessions: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Raises ClientError and _Unusable."""
    steps_s: list[float] = []
    async with _Engines(url) as engines:
        await engines.ask()  # nobody speaks to a service that cannot be measured
        async with _others(url, sessions) as speaking:
            progress.tell(0.0, f"{sessions} sessions begin")
            await _beside(engines.wait_until_used(sessions), speaking)
            looking = asyncio.create_task(engines.watch(steps_s))
            try:
                way_s = await _beside(_speak(url, math.ceil(seconds / FRAME_SECONDS), progress), speaking, looking)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
    if not steps_s:
        raise _Unusable("/status tells no engine's step time")
    step_s = float(np.median(steps_s))
    p50, p99 = (np.percentile(way_s, (50, 99)) - step_s) * 1e3
    return {
        "sessions": sessions,
        "frames": len(way_s),
        "way_p50_ms": round(float(p50), 2),
        "way_p99_ms": round(float(p99), 2),
        "step_p50_ms": round(step_s * 1e3, 2),
    }


async def _beside(work: Coroutine[Any, Any, T], *others: "asyncio.Task[NoReturn]") -> T:
    """What the work comes to. Raises what it raises, or at once what one of the others does."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait((working, *others), return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done() and not working.done():
                other.result()
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _speak(url: str, frames: int, progress: Progress) -> list[float]:
    """Seconds from each frame to its result. Raises ClientError and _Unusable."""
    samples = np.concatenate([clip.samples for clip in choose_clips([])])
    clip = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    sent_at: list[float] = []
    way_s: list[float] = []
    # The service sends one Pauses for each frame, in the frames' order, so the n-th is the n-th frame's. It has no
    # number, so that a resumed session might lose or repeat some; hence none is. More come at the end, of silence.
    async with client.connect(url, pauses=True, resume_s=0) as stream:

        async def send() -> None:
            begun_at = time.monotonic()
            for number in range(frames):
                await asyncio.sleep(begun_at + number * FRAME_SECONDS - time.monotonic())
                sent_at.append(time.monotonic())
                await stream.send(clip[number % len(clip)])
                progress.tell(number / frames, "measuring")
            await stream.end()

        sending = asyncio.create_task(send())
        try:
            async for event in stream:
                if isinstance(event, client.Pauses) and len(way_s) < len(sent_at):
                    way_s.append(time.monotonic() - sent_at[len(way_s)])
        except client.ClientError as error:  # of a session that was open: its text does not say whose
            raise _Unusable(f"{shown(url)}: {error}") from None
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    if not way_s:
        raise _Unusable("the model has no pause heads, so no event tells of each frame")
    return way_s


@asynccontextmanager
async def _others(url: str, sessions: int) -> "AsyncGenerator[asyncio.Task[NoReturn]]":
    """So many sessions at a time while the block runs, held by a process of their own (`loadtest.speaker`).

    The task fails, with _Unusable as well, when one of them does or the process ends.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, *SPEAKER, limit=LONGEST_LINE,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=PROJECT_ROOT, env=os.environ,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout

    def order(**fields: Any) -> None:
        process.stdin.write(json.dumps(fields).encode() + b"\n")

    async def keep_speaking() -> NoReturn:
        number = sessions
        async for line in process.stdout:
            answer = json.loads(line)
            if failure := answer.get("error") or answer.get("outcome", {}).get("failure"):
                raise _Unusable(f"a session beside failed: {failure}")
            if "said" in answer:
                order(say=number)
                number += 1
        raise _Unusable(f"the process that speaks beside ended with exit status {await process.wait()}")

    order(manner={"url": url, "most_wer": 1.0}, clips=None, length=SPOKEN_SECONDS, seed="frames")
    for number in range(sessions):
        order(say=number)
    speaking = asyncio.create_task(keep_speaking())
    try:
        yield speaking
        if speaking.done():
            speaking.result()
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    app()
