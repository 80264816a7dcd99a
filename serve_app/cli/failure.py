"""How every command ends when something is wrong: one message, one exit status, no traceback."""

from typing import NoReturn

import typer

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
