"""The file with which Ray programs on this machine join a running service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.processes import Session, signals_as_exits
from serve_app.cli.ray_access import write_ray_access

PROGRAM = "import time; print('started', flush=True); time.sleep(600)"


@pytest.fixture
def ray(tmp_path: Path):
    """A session with a process that was told where Ray listens, as Ray tells its own."""
    with signals_as_exits():
        session = Session(
            [sys.executable, "-c", PROGRAM, "--gcs-address=127.0.0.1:6380"], dict(os.environ), str(tmp_path)
        )
        assert session.command.stdout.readline() == b"started\n"
        yield session.command.pid
        session.stop(15, patience_s=5)


def test_a_shell_reads_the_address_and_the_token_and_nobody_else_does(ray: int, tmp_path: Path):
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a $HOME of 'quotes'", "OTHER": "thing"}
    path = write_ray_access(tmp_path, ray, environment)
    assert path.stat().st_mode & 0o777 == 0o600
    shell = subprocess.run(["sh", "-c", f". {path}; env -0"], capture_output=True, text=True, env={}, check=True)
    read = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line.startswith(("RAY_", "OTHER")))
    assert read == {
        "RAY_ADDRESS": "127.0.0.1:6380", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a $HOME of 'quotes'"
    }  # fmt: skip


def test_where_no_ray_runs_there_is_no_file(tmp_path: Path):
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    assert write_ray_access(tmp_path, ended.pid, {}) is None
    assert list(tmp_path.iterdir()) == []
