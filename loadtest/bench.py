"""Keeps runs in `loadtest/results/`, and runs them again: `make bench`.

    python -m loadtest.bench keep latency-seed -- stt latency -p 4 --rtf 3 --json
    python -m loadtest.bench again

A command with `--save NAME` keeps its numbers itself; of any other, what it prints must be JSON.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loadtest.own_service import own_service
from loadtest.results import FOLDER, Machine, Result, UnusableResult, load, save
from serve_app.cli.failure import BAD_INPUT, FAILED, fail
from serve_app.cli.server import StartFailed
from serve_app.settings import PROJECT_ROOT

NEED_A_SERVICE = ("locust", "stt")

Folder = Annotated[Path, typer.Option(help="Where runs are kept.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


class CommandFailed(Exception):
    """A command did not leave numbers behind."""


@app.command()
def keep(
    name: Annotated[str, typer.Argument(help="What to call the run.")],
    command: Annotated[list[str], typer.Argument(help="Behind --: locust, stt or python with its arguments.")],
    folder: Folder = FOLDER,
) -> None:
    """Run a command against the service that STT_URL names, or none, and keep what it prints."""
    try:
        _run(name, command, folder)
    except CommandFailed as error:
        fail(error, FAILED)


@app.command()
def again(folder: Folder = FOLDER) -> None:
    """Run everything again that is kept and that this machine can run, against a service of its own."""
    try:
        runs = {file.stem: load(file) for file in sorted(folder.glob("*.json"))}
    except UnusableResult as error:
        fail(error, BAD_INPUT)
    if not runs:
        fail(f"{folder}: nothing is kept there yet", BAD_INPUT)
    possible = {name: shlex.split(result.command) for name, result in runs.items() if _can(name, result)}
    broken = False
    with ExitStack() as exits:
        if any(command[0] in NEED_A_SERVICE for command in possible.values()):
            try:
                os.environ["STT_URL"] = exits.enter_context(own_service())
            except StartFailed as error:
                fail(error, FAILED)
        for name, command in possible.items():
            print(f"{name}: {shlex.join(command)}", flush=True)
            try:
                _run(name, command, folder)
            except CommandFailed as error:
                print(f"{name}: {error}", file=sys.stderr)
                broken = True
    raise typer.Exit(FAILED if broken else 0)


def _can(name: str, result: Result) -> bool:
    possible = not result.machine.gpus or bool(Machine.here().gpus)
    if not possible:
        print(f"{name}: left out, it ran on {', '.join(result.machine.gpus)}")
    return possible


def _run(name: str, command: Sequence[str], folder: Path) -> None:
    """Raises `CommandFailed`."""
    program = sys.executable if command[0] == "python" else str(Path(sys.executable).with_name(command[0]))
    keeps_itself = "--save" in command
    output = None if keeps_itself else subprocess.PIPE
    before = _kept(folder)
    try:
        done = subprocess.run([program, *command[1:]], cwd=PROJECT_ROOT, stdout=output, check=False)
    except OSError as error:
        raise CommandFailed(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode and not keeps_itself:  # a load test that failed sessions has numbers all the same
        raise CommandFailed(f"ended with exit status {done.returncode}")
    if keeps_itself:
        if _kept(folder) == before:  # it crashed; what lies there is of an older run
            raise CommandFailed(f"kept nothing and ended with exit status {done.returncode}")
        return
    try:
        numbers = json.loads(done.stdout)
    except ValueError:
        raise CommandFailed(f"expected it to print JSON, got {done.stdout[:120]!r}") from None
    save(name, command[0], command[1:], numbers, folder)


def _kept(folder: Path) -> dict[Path, int]:
    """When each run was written. A command with `--save` writes to the project's folder, by a name of its own."""
    return {file: file.stat().st_mtime_ns for kept in (folder, FOLDER) for file in kept.glob("*.json")}


if __name__ == "__main__":
    app()
