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
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import typer
from rich.console import Console

from loadtest.own_service import own_service
from loadtest.progress import Progress
from serve_app import client
from serve_app.cli.failure import FAILED, fail
from serve_app.cli.server import StartFailed
from serve_app.client.address import stream_url
from serve_app.samples import choose_clips
from serve_app.settings import PROJECT_ROOT
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS

SETTLE_SECONDS = 5.0
"""Until the sessions beside have all begun."""

LOOK_SECONDS = 1.0
"""Time between two looks at the engine's step time."""

SPOKEN_SECONDS = "20-40"
"""How long each session beside speaks; then the next one comes."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(min=0, help="Sessions that speak beside the measured one.")] = 48,
    seconds: Annotated[float, typer.Option(min=5, help="How long to measure.")] = 40.0,
    url: Annotated[str, typer.Option(help="A service that runs; without it one is started.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure the way of one session's frames through the service while others speak."""
    with Progress("starting the service") as progress:
        try:
            if url:
                figures = asyncio.run(_measure(url, sessions, seconds, progress))
            else:
                with own_service() as own:
                    figures = asyncio.run(_measure(own, sessions, seconds, progress))
        except (StartFailed, client.ClientError, httpx.HTTPError, _Unusable) as error:
            fail(error, FAILED)
    if as_json:
        print(json.dumps(figures))
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{figures['frames']} frames of one session, {sessions} others speaking: on the way for"
        f" {figures['way_p50_ms']:.1f} ms (p50), {figures['way_p99_ms']:.1f} ms (p99),"
        f" beside steps of {figures['step_p50_ms']:.1f} ms"
    )


class _Unusable(Exception):
    """The service does not tell what is to be measured."""


async def _measure(url: str, sessions: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Raises ClientError, HTTPError and _Unusable."""
    async with _others(url, sessions):
        progress.tell(0.0, f"{sessions} sessions begin")
        await asyncio.sleep(SETTLE_SECONDS if sessions else 0.0)
        looking = asyncio.create_task(_step_times(url))
        try:
            way_s = await _speak(url, math.ceil(seconds / FRAME_SECONDS), progress)
        finally:
            looking.cancel()
            steps_s = await looking
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


async def _speak(url: str, frames: int, progress: Progress) -> list[float]:
    """Seconds from each frame to its result."""
    samples = np.concatenate([clip.samples for clip in choose_clips([])])
    clip = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    sent_at: list[float] = []
    way_s: list[float] = []
    async with client.connect(url, pauses=True) as stream:

        async def send() -> None:
            begun_at = time.monotonic()
            for number in range(frames):
                await asyncio.sleep(begun_at + number * FRAME_SECONDS - time.monotonic())
                sent_at.append(time.monotonic())
                await stream.send(
                    np.take(clip, range(number * FRAME_SAMPLES, (number + 1) * FRAME_SAMPLES), mode="wrap")
                )
                progress.tell(number / frames, "measuring")
            await stream.end()

        sending = asyncio.create_task(send())
        try:
            async for event in stream:
                if isinstance(event, client.Pauses) and len(way_s) < len(sent_at):
                    way_s.append(time.monotonic() - sent_at[len(way_s)])
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    if not way_s:
        raise _Unusable("the model has no pause heads, so no event tells of each frame")
    return way_s


async def _step_times(url: str) -> list[float]:
    """The engines' median steps, until cancelled."""
    parts = urlsplit(stream_url(url))
    address = f"{parts.scheme.replace('ws', 'http', 1)}://{parts.netloc}/status"
    seen: list[float] = []
    try:
        async with httpx.AsyncClient() as http:
            while True:
                status = (await http.get(address)).json()
                seen += [load["step_p50_seconds"] for load in status["engines"].values()]
                await asyncio.sleep(LOOK_SECONDS)
    except asyncio.CancelledError:
        return seen


@asynccontextmanager
async def _others(url: str, sessions: int) -> AsyncGenerator[None]:
    """So many sessions at a time while the block runs, held by a process of their own (`loadtest.speaker`).

    Raises _Unusable, at the end of the block, if one of them failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest.speaker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=PROJECT_ROOT, env=os.environ,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout

    def order(**fields: Any) -> None:
        process.stdin.write(json.dumps(fields).encode() + b"\n")

    failures: list[str] = []

    async def keep_speaking() -> None:
        number = sessions
        async for line in process.stdout:
            answer = json.loads(line)
            if failure := answer.get("error") or answer.get("outcome", {}).get("failure"):
                failures.append(failure)
            elif "said" in answer:
                order(say=number)
                number += 1

    order(manner={"url": url, "most_wer": 1.0}, clips=None, length=SPOKEN_SECONDS, seed="frames")
    for number in range(sessions):
        order(say=number)
    speaking = asyncio.create_task(keep_speaking())
    try:
        yield
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        process.stdin.close()
        await process.wait()
    if failures:
        raise _Unusable(f"{len(failures)} of the sessions beside failed, the first with {failures[0]}")


if __name__ == "__main__":
    app()
