"""How a program on this machine joins the Ray of a running service: variables in a file for this user alone."""

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from serve_app.cli import processes

FILE = "ray.env"

_ADDRESS = "--gcs-address="
"""What Ray tells its own processes; it has no other way to say where a Ray of our own listens."""


def write_ray_access(folder: Path, session: int, environment: Mapping[str, str]) -> Path | None:
    """Write the variables to a new file of the folder, for a shell to read: address, and what lets a program in.

    `session` holds the processes of that Ray, `environment` is theirs. None where it does not run (any more).
    """
    address = _address(session)
    if address is None:
        return None
    variables = {"RAY_ADDRESS": address}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        if name in environment:
            variables[name] = environment[name]
    path = folder / FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    return path


def _address(session: int) -> str | None:
    for process in processes.members(session):
        with contextlib.suppress(psutil.Error):
            for argument in process.cmdline():
                if argument.startswith(_ADDRESS):
                    return str(argument).removeprefix(_ADDRESS)
    return None
