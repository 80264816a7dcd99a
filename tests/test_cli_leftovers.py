"""What killed launchers leave behind goes away with the next start, and nothing else does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serve_app.cli.leftovers import LOCK, SESSION, RunFolder, sweep
from serve_app.cli.processes import kill_all, members

LAUNCHER = """
import os, pathlib, sys, time
from serve_app.cli.leftovers import RunFolder
from serve_app.cli.processes import Session
folder = RunFolder(pathlib.Path(sys.argv[1]))
session = Session(["sh", "-c", "sleep 600 & sleep 600"], os.environ | {"A": f"{folder.path}/a"}, "/")
folder.remember(session.command.pid)
print(session.command.pid, session._keeper.pid, folder.path, flush=True)
time.sleep(600)
"""


class Launched:
    """A launcher in a process of its own, with a session."""

    def __init__(self, base: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(base)], stdout=subprocess.PIPE, text=True)
        session, keeper, folder = self.process.stdout.readline().split()
        self.session, self.keeper, self.folder = int(session), psutil.Process(int(keeper)), Path(folder)

    def kill(self) -> None:
        """Kill the launcher, and first the keeper that would end its session."""
        self.keeper.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    launched = Launched(tmp_path)
    yield launched
    launched.kill()
    kill_all(launched.session)


def test_a_living_launcher_keeps_what_it_has(tmp_path: Path, launched: Launched):
    sweep(tmp_path)
    assert (launched.folder / LOCK).exists()
    assert members(launched.session)


def test_a_killed_launchers_folder_and_processes_go(tmp_path: Path, launched: Launched):
    launched.kill()
    assert members(launched.session)
    sweep(tmp_path)
    assert not launched.folder.exists()
    assert not members(launched.session)


def test_a_number_that_became_another_session_is_left_alone(tmp_path: Path, launched: Launched):
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        launched.kill()
        (launched.folder / SESSION).write_text(str(stranger.pid))
        sweep(tmp_path)
        assert not launched.folder.exists()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "999999999"])
def test_a_session_that_is_none(tmp_path: Path, text: str):
    folder = RunFolder(tmp_path)
    copy = tmp_path / "stt-copy"
    shutil.copytree(folder.path, copy)  # whose lock nobody holds
    (copy / SESSION).write_text(text)
    sweep(tmp_path)
    assert folder.path.exists()
    assert not copy.exists()
    folder.remove()
    assert not folder.path.exists()


def test_what_is_no_launchers_stays(tmp_path: Path):
    (tmp_path / "stt-demo-1.log").write_text("a log")
    (tmp_path / "stt-chaos-1").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / LOCK).touch()
    (tmp_path / "stt-link").symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_lock_does_not_outlive_the_launcher_in_its_children(tmp_path: Path):
    folder = RunFolder(tmp_path)
    child = subprocess.Popen(["sh", "-c", "echo started; exec sleep 600"], close_fds=False, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"started\n"
        open_files = {os.path.realpath(f"/proc/{child.pid}/fd/{name}") for name in os.listdir(f"/proc/{child.pid}/fd")}
        assert str(folder.path / LOCK) not in open_files
    finally:
        child.kill()
        child.wait()
        folder.remove()
