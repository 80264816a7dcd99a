"""`stt smoke`: a minute against a running service: every endpoint, every dialect, a real clip, a verdict."""

import asyncio
import dataclasses
import json as json_format
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app import client
from serve_app.audio.files import read_audio
from serve_app.cli.failure import BAD_INPUT, FAILED, fail, failures_reported
from serve_app.cli.services import Access, Key, ServiceName, Url, find_access
from serve_app.samples import FOLDER, Clip, demo_clip
from serve_app.smoke.heard import Said, Unexpected
from serve_app.smoke.run import NotReady, Report, Verdict, run
from serve_app.smoke.target import Target

DEMO_MODEL = "demo"
"""The one that the bundled clip's text is known to come out of: to others its synthetic voice may sound different."""

MOST_WORD_ERRORS = 0.1


def smoke(
    *,
    url: Url = None,
    service: ServiceName = None,
    api_key: Key = None,
    clip: Annotated[Path | None, typer.Option(help="An audio file instead of the bundled clip.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="What is said in it. Without, all dialects must hear the same words as /v1/stream does."),
    ] = None,
    max_wer: Annotated[float, typer.Option(min=0, help="Word error rate up to which words are right.")] = (
        MOST_WORD_ERRORS
    ),
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the service to be ready.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Try everything that a running service can do, and say whether all is well (exit status 0)."""
    if reference is not None and not reference.strip():
        fail("--reference: expected some words, got none", BAD_INPUT)
    with failures_reported():
        access = find_access(url, service, api_key, os.environ)
        said, expected = _clip(clip, reference)
        try:
            report = asyncio.run(_run(access, said, expected, max_wer, wait, _nothing if json else _print))
        except (NotReady, Unexpected, client.ClientError) as error:
            if json:
                _print_json({"ok": False, "error": str(error), "checks": []})
            if isinstance(error, client.ClientError):
                raise
            fail(error, FAILED)
    if json:
        _print_json({"ok": report.ok, **dataclasses.asdict(report)})
    else:
        _print_end(report)
    raise typer.Exit(0 if report.ok else FAILED)


def _clip(file: Path | None, reference: str | None) -> tuple[Said, Callable[[str], str | None]]:
    """What is sent, and what is said in it as a model hears it. Raises `AudioFileError`."""
    if file is not None:
        return Said(Clip(file.name, read_audio(file), ()), file.read_bytes()), lambda model: reference
    bundled = demo_clip()
    said = Said(bundled, (FOLDER / bundled.file).read_bytes(), bundled.words[0].start_s)
    return said, lambda model: reference or (bundled.text if model == DEMO_MODEL else None)


async def _run(
    access: Access,
    said: Said,
    reference: Callable[[str], str | None],
    max_wer: float,
    wait_s: float,
    tell: Callable[[Verdict], None],
) -> Report:
    async with Target(access.url, access.api_key, access.headers) as target:
        return await run(target, said, reference, most_errors=max_wer, ready_s=wait_s, tell=tell)


def _print(verdict: Verdict) -> None:
    delay = "" if verdict.first_word_s is None else f"first word {verdict.first_word_s:.2f} s"
    errors = "" if verdict.wer is None else f"wer {verdict.wer:.3f}"
    line = f"{'ok' if verdict.ok else 'FAIL':<5} {verdict.name:<43}{verdict.seconds:6.2f} s  {errors:<9}  {delay:<17}"
    print(f"{line}  {verdict.note}".rstrip(), flush=True)


def _nothing(verdict: Verdict) -> None:
    """All of them are in the report."""


def _print_json(result: dict[str, Any]) -> None:
    print(json_format.dumps(result, ensure_ascii=False))


def _print_end(report: Report) -> None:
    words = "none" if report.reference is None else report.reference
    print(f"words:  {words}" + ("" if report.reference_is == "known" else f" ({report.reference_is})"))
    good = sum(verdict.ok for verdict in report.checks)
    print(
        f"smoke: {'ok' if report.ok else 'FAILED'} {good} of {len(report.checks)} checks in {report.seconds:.0f} s"
        f" ({report.url}, model {report.model})",
        flush=True,
    )
