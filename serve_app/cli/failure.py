"""How every command ends when something is wrong: one message, one exit status, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from serve_app import client
from serve_app.audio.files import AudioFileError
from serve_app.audio.microphone import MicrophoneError
from serve_app.cli.services import UnknownService

FAILED = 1
"""The service or the transcription failed."""

BAD_INPUT = 2
"""A file, an address, an option or a setting cannot be used."""

NO_SERVER = 3
"""Nobody answers, or the key is refused."""


def fail(message: object, status: int) -> NoReturn:
    """Print the message to stderr and leave with the status."""
    typer.echo(f"stt: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def failures_reported() -> Iterator[None]:
    """End as above on what a client of the service may meet."""
    try:
        yield
    except (AudioFileError, MicrophoneError, UnknownService, client.InvalidAddress) as error:
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
