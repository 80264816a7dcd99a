"""`stt transcribe FILE`: stream a file to a service and print the text as it comes."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, TextIO

import numpy as np
import typer
from numpy.typing import NDArray

from serve_app import client, subtitles
from serve_app.audio.download import is_web_address, read_url
from serve_app.audio.files import read_audio, read_stream
from serve_app.cli.failure import BAD_INPUT, fail, failures_reported
from serve_app.cli.printing import JsonLines, Printer, Segments, TextLines, WordLines
from serve_app.cli.services import Key, ModelName, ServiceName, Url, Wait, WireFormat, find_access

STANDARD_INPUT = Path("standard input")
"""What messages call it."""


def transcribe(
    file: Annotated[
        str,
        typer.Argument(
            help="A WAV, FLAC, MP3, Ogg, WebM or M4A file, its http(s) address, or - for standard input.",
            metavar="FILE|URL|-",
        ),
    ],
    *,
    url: Url = None,
    service: ServiceName = None,
    api_key: Key = None,
    model: ModelName = None,
    rtf: Annotated[
        float, typer.Option(min=0, help="Speed: 1 is real time, 3 three times faster, 0 as fast as it goes.")
    ] = 1.0,
    format: WireFormat = "f32",
    wait: Wait = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON event per line.")] = False,
    words: Annotated[bool, typer.Option("--words", help="One word per line, with start and end in seconds.")] = False,
    srt: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Also write SubRip subtitles; - prints them instead of text.")
    ] = None,
    vtt: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Also write WebVTT subtitles; - prints them instead of text.")
    ] = None,
) -> None:
    """Stream a file to the service and print its text as it comes."""
    subtitles_printed = [srt, vtt].count("-")
    if json + words + subtitles_printed > 1:
        fail("expected one of --json, --words, --srt - and --vtt -: all of them print", BAD_INPUT)
    printer = JsonLines() if json else WordLines() if words else TextLines()
    segments = Segments()
    with failures_reported(), contextlib.ExitStack() as outputs:
        access = find_access(url, service, api_key, os.environ)
        samples = _samples(file)
        targets = {
            kind: outputs.enter_context(_output(name))
            for kind, name in ((subtitles.srt, srt), (subtitles.vtt, vtt))
            if name
        }
        events = client.transcribe(
            access.url,
            samples,
            rtf=rtf,
            words=words or bool(targets),
            model=model,
            api_key=access.api_key,
            headers=access.headers,
            wait_s=wait,
            format=format,
        )
        try:
            asyncio.run(_show(events, [segments] if subtitles_printed else [printer, segments]))
        except client.ServerError as error:
            if error.code == "session_too_long" and rtf:
                typer.echo("stt: a longer file must be sent faster than real time: --rtf 0", err=True)
            raise
        finally:  # what was heard before a failure counts, too
            for written, output in targets.items():
                output.write(written(subtitles.cues(segments.found)))


async def _show(events: AsyncGenerator[client.Arrival], printers: list[Printer]) -> None:
    try:
        # Closed before the loop is, whatever ends this: a reader like `head` that has seen enough breaks the pipe.
        async with contextlib.aclosing(events) as arrivals:
            async for arrival in arrivals:
                for printer in printers:
                    printer.show(arrival.event)
    finally:
        for printer in printers:
            printer.close()


def _samples(file: str) -> NDArray[np.float32]:
    if is_web_address(file):
        return read_url(file)
    return read_stream(sys.stdin.buffer, STANDARD_INPUT) if file == "-" else read_audio(file)


def _output(name: str) -> AbstractContextManager[TextIO]:
    """Opened before anything is heard: what cannot be written is told then."""
    if name == "-":
        return contextlib.nullcontext(sys.stdout)
    try:
        return Path(name).open("w", encoding="utf-8")
    except OSError as error:
        fail(f"{name}: cannot be written ({error.strerror})", BAD_INPUT)
