"""`stt fetch`: get a model's checkpoint onto this machine, without starting anything."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.checkpoint.files import CheckpointError
from serve_app.cli.config import DEFAULT_CONFIG
from serve_app.cli.failure import BAD_INPUT, fail
from serve_app.cli.fetching import fetch_parts
from serve_app.settings import SettingsError, load_for_fetching


def fetch(
    model: Annotated[str, typer.Argument(help="As the setting model: a name, or a Hugging Face id; or one of models.")],
    config: Annotated[Path, typer.Option(help="Serve's config file.")] = DEFAULT_CONFIG,
) -> None:
    """Download a model's checkpoint, check it, and say where it is: for images, and for machines without a network."""
    try:
        parts = fetch_parts(load_for_fetching(config, model))
    except (SettingsError, CheckpointError) as error:
        fail(error, BAD_INPUT)
    typer.echo(parts.config_path.parent)
