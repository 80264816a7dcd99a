"""`stt serve`: run the service in the foreground."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from serve_app.checkpoint.files import CheckpointError
from serve_app.cli.config import DEFAULT_CONFIG, Overrides, UnusableConfig
from serve_app.cli.failure import BAD_INPUT, FAILED, fail
from serve_app.cli.fetching import fetch_checkpoints
from serve_app.cli.server import START_TIMEOUT_S, StartFailed, StartTimeout, running
from serve_app.settings import SettingsError


def serve(
    config: Annotated[Path, typer.Option(help="Serve's config file.")] = DEFAULT_CONFIG,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Instead of http_options.port.")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of http_options.host.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of the setting model; one of models, too.")] = None,
    start_timeout: StartTimeout = START_TIMEOUT_S,
) -> None:
    """Run the service until Ctrl-C: on a Ray of its own, or where RAY_ADDRESS says."""
    overrides = Overrides.from_environment(host=host, port=port, model=model)
    try:
        fetch_checkpoints(overrides.settings(config), overrides)
        with running(config, overrides, output=sys.stdout.buffer) as server:
            server.wait_until_ready(start_timeout)
            if access := server.ray_access():
                typer.echo(f"stt: Ray programs on this machine join with: . {access}", err=True)
            typer.echo(f"stt: ready at {server.url}", err=True)
            status = server.wait()
    except (SettingsError, CheckpointError, UnusableConfig) as error:
        fail(error, BAD_INPUT)
    except StartFailed as error:
        fail(error, FAILED)
    fail(f"the service ended by itself (exit status {status})", FAILED)
