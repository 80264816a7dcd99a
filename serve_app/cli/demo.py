"""`stt demo`: start the service, stream a sample in real time, say how well and how fast it was understood."""

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from serve_app import client
from serve_app.audio.files import AudioFileError
from serve_app.checkpoint.files import CheckpointError
from serve_app.cli.config import DEFAULT_CONFIG, Overrides, UnusableConfig
from serve_app.cli.failure import BAD_INPUT, FAILED, fail
from serve_app.cli.fetching import fetch_checkpoints
from serve_app.cli.server import START_TIMEOUT_S, StartFailed, StartTimeout, free_port, running
from serve_app.measuring.hearing import word_errors
from serve_app.samples import demo_clip
from serve_app.settings import SettingsError

MOST_WORD_ERRORS = 0.1
"""Word error rate up to which the demo counts as passed."""


@dataclass
class Heard:
    """What came back for the sample."""

    text: str
    first_token_s: float | None
    """From the moment the start of the first word was sent to the first token's arrival."""


def demo(
    config: Annotated[Path, typer.Option(help="Serve's config file.")] = DEFAULT_CONFIG,
    model: Annotated[str | None, typer.Option(help="Instead of the setting model; one of models, too.")] = None,
    start_timeout: StartTimeout = START_TIMEOUT_S,
) -> None:
    """Start the service on a free port, stream a sample clip in real time, and check what comes back."""
    console = Console(highlight=False)
    overrides = Overrides.from_environment(host="127.0.0.1", port=free_port(), model=model, auth="none")
    log = Path(tempfile.mkstemp(prefix="stt-demo-", suffix=".log")[1])
    keep_log = True
    try:
        fetch_checkpoints(overrides.settings(config), overrides)
        clip = demo_clip()
        with log.open("wb") as output, running(config, overrides, output) as server:
            with _progress(console, "starting the service"):
                server.wait_until_ready(start_timeout)
            console.print(f"streaming {clip.file} to {server.url}")
            heard = asyncio.run(_stream(server.url, clip.samples, clip.words[0].start_s))
        keep_log = False
    except (SettingsError, CheckpointError, UnusableConfig, AudioFileError) as error:
        keep_log = False
        fail(error, BAD_INPUT)
    except (StartFailed, client.ClientError) as error:
        fail(f"{error}\n(the service's log is {log})", FAILED)
    except (SystemExit, KeyboardInterrupt):
        keep_log = False  # interrupted, nothing to look into
        raise
    finally:
        if not keep_log:
            log.unlink(missing_ok=True)
    errors, words = word_errors(clip.text, heard.text)
    wer = errors / words
    console.print(f"reference:  {clip.text}\nhypothesis: {heard.text}", markup=False)
    first_token = "none" if heard.first_token_s is None else f"{heard.first_token_s:.2f}"
    print(f"demo: wer={wer:.3f} first_token_s={first_token} audio_s={clip.seconds:.1f}", flush=True)
    raise typer.Exit(0 if wer <= MOST_WORD_ERRORS else FAILED)


async def _stream(url: str, samples: NDArray[np.float32], first_word_start_s: float) -> Heard:
    """Stream the samples in real time and print the text as it comes."""
    heard, pace = Heard("", None), client.Pace()
    async with contextlib.aclosing(client.transcribe(url, samples, pace=pace)) as arrivals:
        async for arrival in arrivals:
            if isinstance(arrival.event, client.Token):
                if heard.first_token_s is None:
                    with contextlib.suppress(IndexError):  # a token before the first word: nothing to measure from
                        heard.first_token_s = arrival.at_s - pace.when_sent_s(first_word_start_s)
                heard.text += arrival.event.text
                print(arrival.event.text, end="", flush=True)
    print(flush=True)
    heard.text = heard.text.strip()
    return heard


@contextlib.contextmanager
def _progress(console: Console, what: str) -> Iterator[None]:
    """Show that something is going on: a spinner on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
        return
    over = threading.Event()

    def report() -> None:
        seconds = 0
        print(f"{what} …", flush=True)
        while not over.wait(10):
            seconds += 10
            print(f"{what} … {seconds} s", flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()
