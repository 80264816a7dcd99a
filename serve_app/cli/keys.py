"""`stt keys add NAME`: make an API key."""

import contextlib
import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from serve_app.cli.failure import BAD_INPUT, fail
from serve_app.problems import describe
from serve_app.settings import ApiKey, SettingsError, key_digest, read_keys

KEY_PREFIX = "stt_"
"""Tells people, and programs that look for leaked secrets, what it is."""

KEY_BYTES = 32

DEFAULT_FILE = Path("keys.yaml")

keys = typer.Typer(help="API keys.", no_args_is_help=True)


@keys.callback()
def _only_with_a_command() -> None:
    pass  # without it typer would make `add` the command itself


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="What logs call the key.")],
    *,
    max_sessions: Annotated[int | None, typer.Option(help="Sessions it may hold at once.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="HTTP requests it may have running at once.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Take a key that exists, a line of standard input.")] = False,
    file: Annotated[Path, typer.Option(envvar="STT_KEYS_FILE", help="The keys file.")] = DEFAULT_FILE,
) -> None:
    """Print a new key, once, and add its hash to the keys file."""
    key = _read_key() if stdin else KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    file = file.expanduser()
    try:
        entry = ApiKey(name=name, sha256=key_digest(key.encode()), max_sessions=max_sessions, max_requests=max_requests)
        append(file, entry)
    except SettingsError as error:
        fail(error, BAD_INPUT)
    except ValidationError as error:
        fail("; ".join(describe(ApiKey, one["loc"], one) for one in error.errors()), BAD_INPUT)
    except OSError as error:
        fail(f"{file}: cannot be written ({error.strerror})", BAD_INPUT)
    if not stdin:
        typer.echo(key)
    typer.echo(f"stt: the key {name} is good where auth.keys_file (STT_KEYS_FILE) is {file.resolve()}", err=True)


def _read_key() -> str:
    key = sys.stdin.read().strip()
    if not key or key != "".join(key.split()):
        fail("standard input: expected a key, on one line and without spaces", BAD_INPUT)
    return key


def append(path: Path, key: ApiKey) -> None:
    """Add a key to a keys file, which is made if need be; what people wrote there stays. Raises SettingsError."""
    text = path.read_text(encoding="utf-8") if path.exists() else "keys:\n"
    before = read_keys(path) if path.exists() else ()
    if key.name in {other.name for other in before}:
        raise SettingsError([f"{path}: expected a new name, got {key.name!r}"])
    lines = yaml.safe_dump([key.model_dump(exclude_none=True)], sort_keys=False)
    # Whole and private from its first moment on: a service may be reading it.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as made:
        made.write(f"{text.rstrip()}\n{lines}")
    if path.exists():
        _share_as(path, Path(temporary))
    try:
        if read_keys(Path(temporary)) != (*before, key):
            raise SettingsError([])
        os.replace(temporary, path)
    except SettingsError:
        Path(temporary).unlink()
        raise SettingsError(
            [f"{path}: expected one list, keys, with items at the start of their lines; add this yourself:\n{lines}"]
        ) from None


def _share_as(old: Path, new: Path) -> None:
    """Let those read the new file who could read the old one: the service may run as another user than this command."""
    was = old.stat()
    with contextlib.suppress(OSError):  # only root gives files away
        os.chown(new, was.st_uid, was.st_gid)
        new.chmod(stat.S_IMODE(was.st_mode))
