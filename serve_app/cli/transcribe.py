"""`stt transcribe FILE`: stream a file to a service and print the text as it comes."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from serve_app import client
from serve_app.audio.files import AudioFileError, read_audio, read_stream
from serve_app.cli.failure import BAD_INPUT, FAILED, NO_SERVER, fail
from serve_app.settings import environment_key

STANDARD_INPUT = Path("standard input")
"""What messages call it."""

DEFAULT_URL = "ws://127.0.0.1:8000/v1/stream"


def transcribe(
    file: Annotated[
        Path, typer.Argument(help="A WAV, FLAC, MP3 or Ogg (Vorbis or Opus) file, or - for standard input.")
    ],
    *,
    url: Annotated[str, typer.Option(envvar="STT_URL", help="Where the service is.")] = DEFAULT_URL,
    rtf: Annotated[
        float, typer.Option(min=0, help="Speed: 1 is real time, 3 three times faster, 0 as fast as it goes.")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON event per line.")] = False,
    words: Annotated[bool, typer.Option("--words", help="One word per line, with start and end in seconds.")] = False,
    api_key: Annotated[
        str | None, typer.Option(help="The service's API key; else STT_API_KEY, or MODAL_KEY and MODAL_SECRET.")
    ] = None,
) -> None:
    """Stream a file to the service and print its text as it comes."""
    try:
        samples = read_stream(sys.stdin.buffer, STANDARD_INPUT) if str(file) == "-" else read_audio(file)
        key = api_key or environment_key(os.environ)
        asyncio.run(_print_events(samples, url, rtf, as_json=json, words=words, api_key=key))
    except (AudioFileError, client.InvalidAddress) as error:
        fail(error, BAD_INPUT)
    except client.ConnectionRefused as error:
        fail(error, NO_SERVER)
    except client.ServerError as error:
        later = f"; try again in {error.retry_after_s:g} s" if error.retry_after_s is not None else ""
        fail(f"the server reports: {error}{later}", FAILED)
    except client.ClientError as error:
        fail(error, FAILED)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _print_events(
    samples: NDArray[np.float32], url: str, rtf: float, *, as_json: bool, words: bool, api_key: str
) -> None:
    line_open = False
    try:
        events = client.transcribe(url, samples, rtf=rtf, words=words, api_key=api_key)
        # Closed before the loop is, whatever ends this: a reader like `head` that has seen enough breaks the pipe.
        async with contextlib.aclosing(events) as arrivals:
            async for arrival in arrivals:
                match arrival.event:
                    case event if as_json:
                        print(event.model_dump_json(exclude_none=True), flush=True)
                    case client.Word(text=text, start=start, end=end) if words:
                        print(f"{start:.2f}-{end:.2f} {text}", flush=True)
                    case client.Token(text=text) if not words:
                        print(text if line_open else text.lstrip(), end="", flush=True)
                        line_open = True
                    case client.TurnEnd() if line_open:
                        print(flush=True)
                        line_open = False
    finally:
        if line_open:
            print(flush=True)
