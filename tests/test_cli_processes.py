"""What a command starts ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve_app.cli.processes import Session, members, signals_as_exits, signals_ignored

SHELL = """
sleep 600 &
python3 -c 'import os, time; os.setpgid(0, 0); time.sleep(600)' &
(sleep 600 &)
{trap}
echo started
wait
"""


def shell(trap: str = "") -> list[str]:
    """A command with a child, a child in a process group of its own, and an orphan."""
    return ["sh", "-c", SHELL.replace("python3", sys.executable).format(trap=trap)]


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("trap", ["", "trap '' TERM"])
def test_stop_leaves_nothing(tmp_path: Path, trap: str):
    session = Session(shell(trap), dict(os.environ), str(tmp_path))
    assert session.command.stdout.readline() == b"started\n"
    assert len(members(session.command.pid)) == 4
    session.stop(signal.SIGTERM, patience_s=0.5)
    assert members(session.command.pid) == []
    assert session.command.returncode is not None


def test_stop_after_the_command_ended(tmp_path: Path):
    session = Session(["sh", "-c", "sleep 600 & exit 3"], dict(os.environ), str(tmp_path))
    assert session.command.wait(10) == 3
    session.stop(signal.SIGTERM, patience_s=1)
    assert members(session.command.pid) == []


def test_a_killed_parent_leaves_nothing(tmp_path: Path):
    program = (
        "import os, sys, time; from serve_app.cli.processes import Session\n"
        "session = Session(sys.argv[1:], dict(os.environ), os.getcwd())\n"
        "session.command.stdout.readline()\n"
        "print(session.command.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, *shell()], stdout=subprocess.PIPE)
    session = int(parent.stdout.readline())
    assert len(members(session)) == 4
    parent.kill()
    parent.wait()
    wait_for(lambda: not members(session))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_become_exits(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, signals_as_exits():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_signals_do_not_interrupt_cleaning_up():
    with signals_as_exits(), signals_ignored():
        psutil.Process().send_signal(signal.SIGTERM)
        psutil.Process().send_signal(signal.SIGINT)
