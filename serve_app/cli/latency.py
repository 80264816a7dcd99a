"""`stt latency`: how soon words come back, over a few streams, of one service or of several side by side."""

import asyncio
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from serve_app import client
from serve_app.cli.compare_gpus import DeployFailed, Fleet, NoCluster
from serve_app.cli.config import UnusableConfig
from serve_app.cli.failure import BAD_INPUT, FAILED, fail, failures_reported
from serve_app.cli.latency_view import print_comparison, print_summary, showing
from serve_app.cli.server import START_TIMEOUT_S
from serve_app.cli.services import Access, Key, ServiceName, Url, WireFormat, find_access
from serve_app.measuring.latency import run_streams, summarise
from serve_app.measuring.speaking import Manner
from serve_app.samples import Clip, choose_clips
from serve_app.settings import SettingsError


@dataclass(frozen=True)
class Plan:
    """What is run against every service."""

    clips: Sequence[Clip]
    streams: int
    runs: int
    rtf: float
    format: client.Format
    warmup: bool
    quiet: bool
    """Print nothing but results."""


def latency(
    *,
    url: Url = None,
    service: ServiceName = None,
    api_key: Key = None,
    parallel: Annotated[int, typer.Option("--parallel", "-p", min=1, help="Streams at once.")] = 4,
    runs: Annotated[int, typer.Option(min=1, help="How often.")] = 1,
    rtf: Annotated[float, typer.Option(min=0.01, help="Speed: 1 is real time, 3 three times faster.")] = 1.0,
    samples: Annotated[
        list[Path] | None,
        typer.Option(help="An audio file, or a folder of them with texts (a.wav, a.txt); else the bundled clips."),
    ] = None,
    format: WireFormat = "f32",
    warmup: Annotated[bool, typer.Option(help="Run once more before, uncounted.")] = False,
    endpoints: Annotated[
        str | None, typer.Option(metavar="NAME=URL,…", help="Compare these services instead, in one table.")
    ] = None,
    compare_gpus: Annotated[
        str | None,
        typer.Option(metavar="L4,L40S,…", help="Deploy an app per accelerator type on the Ray cluster, and compare."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Serve's config file of those apps.")] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds one of them may take to start.")] = (
        START_TIMEOUT_S
    ),
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as one JSON object.")] = False,
) -> None:
    """Run a few streams at once and tell how soon their words came: after they were spoken, and after they ended."""
    if endpoints and compare_gpus:
        fail("expected one of --endpoints and --compare-gpus, got both", BAD_INPUT)
    console = Console(file=sys.stdout, highlight=False)
    with failures_reported():
        clips = choose_clips(samples or [])
        plan = Plan(clips, parallel, runs, rtf, format, warmup, as_json)
        if compare_gpus:
            rows = _compare_gpus(console, plan, compare_gpus, config, start_timeout)
        elif endpoints:
            rows = [_measure_or_tell(console, plan, name, access) for name, access in _parse(endpoints, api_key)]
        else:
            access = find_access(url, service, api_key, os.environ)
            row = _measure(console, plan, "", access)
            reasons = row.pop("reasons")
            if as_json:
                print(json.dumps(row))
            else:
                print_summary(console, "", row, reasons)
            raise typer.Exit(FAILED if row["failures"] else 0)
    if as_json:
        print(json.dumps(rows))
    else:
        print_comparison(console, rows)
    raise typer.Exit(FAILED if any("error" in row or row["failures"] for row in rows) else 0)


def _compare_gpus(
    console: Console, plan: Plan, text: str, config: Path | None, start_timeout: float
) -> list[dict[str, Any]]:
    gpus = [gpu.strip() for gpu in text.split(",") if gpu.strip()]
    rows = []
    try:
        with Fleet(config) as fleet:
            for gpu in gpus:
                try:
                    with fleet.deployed(gpu, start_timeout) as app:
                        row = _measure_or_tell(console, plan, gpu, Access(app.url))
                except DeployFailed as error:
                    row = {"name": gpu, "error": str(error)}
                else:
                    if app.price_per_stream_hour is not None:
                        row["price_per_stream_hour"] = app.price_per_stream_hour
                rows.append(row)
    except (NoCluster, SettingsError, UnusableConfig) as error:
        fail(error, BAD_INPUT)
    return rows


def _measure_or_tell(console: Console, plan: Plan, name: str, access: Access) -> dict[str, Any]:
    """A row of the comparison: one service that is not there does not end it."""
    try:
        row = _measure(console, plan, name, access)
    except client.ClientError as error:
        return {"name": name, "error": str(error)}
    if reasons := row.pop("reasons"):
        row["reasons"] = sorted(set(reasons))
    return {"name": name, **row}


def _measure(console: Console, plan: Plan, name: str, access: Access) -> dict[str, Any]:
    """The summary, and under `reasons` why streams failed."""
    manner = Manner(
        access.url, format=plan.format, rtf=plan.rtf, most_wer=math.inf, api_key=access.api_key, headers=access.headers
    )
    heading = f"{name}: " if name else ""

    async def run_all() -> dict[str, Any]:
        if plan.warmup:
            with showing(console, f"{heading}warm-up", plan.quiet) as show:
                warm = await run_streams(plan.clips, manner, plan.streams, show)
            if not plan.quiet:
                first = summarise(warm, plan.streams, plan.rtf)["first_token_s"]["avg"]
                console.print(f"{heading}warm-up: first token avg {first} s")
        done = []
        for number in range(plan.runs):
            title = f"{heading}run {number + 1} of {plan.runs}: {plan.streams} streams, rtf {plan.rtf:g}"
            with showing(console, title, plan.quiet) as show:
                done += await run_streams(plan.clips, manner, plan.streams, show)
        reasons = [run.outcome.failure for run in done if run.outcome.failure]
        return {**summarise(done, plan.streams, plan.rtf), "reasons": reasons}

    return asyncio.run(run_all())


def _parse(endpoints: str, api_key: str | None) -> list[tuple[str, Access]]:
    """`name=url,…`; a name alone is one of the services file. Raises `UnknownService`."""
    found = []
    for part in endpoints.split(","):
        name, _, url = (text.strip() for text in part.partition("="))
        if not name:
            fail(f"--endpoints: expected NAME=URL with commas, got {endpoints!r}", BAD_INPUT)
        found.append((name, find_access(url or None, None if url else name, api_key, os.environ)))
    return found
