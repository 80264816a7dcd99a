"""Runs are kept, and run again where the machine can."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.results import Machine, load, save
from tests.support import PROJECT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.bench", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_a_run_is_kept_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count = tmp_path / "count"
    program = (
        f"import json, pathlib; f = pathlib.Path({str(count)!r}); f.open('a').write('x'); print(len(f.read_text()))"
    )
    done = bench("keep", "counted", "--folder", str(tmp_path), "--", "python", "-c", program)
    assert (done.returncode, load(tmp_path / "counted.json").numbers) == (0, 1), done.stderr
    gpu = replace(Machine.here(), gpus=["H100"])
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: gpu))
    save("elsewhere", "python", ["-c", "raise SystemExit(1)"], 0, tmp_path)
    done = bench("again", "--folder", str(tmp_path))
    assert (done.returncode, load(tmp_path / "counted.json").numbers) == (0, 2), done.stderr
    assert "elsewhere: left out, it ran on H100" in done.stdout


@pytest.mark.parametrize(
    ("program", "message"),
    [("raise SystemExit(3)", "ended with exit status 3"), ("print('hm')", "expected it to print JSON, got b'hm")],
)
def test_a_command_without_numbers_is_not_kept(tmp_path: Path, program: str, message: str):
    done = bench("keep", "x", "--folder", str(tmp_path), "--", "python", "-c", program)
    assert done.returncode == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("crash", "status"), [("", 0), ("sys.exit(4)", 4)])
def test_a_command_that_keeps_its_run_itself_must_have_written_it(tmp_path: Path, crash: str, status: int):
    save("x", "python", [], 1, tmp_path)
    command = ["python", "-c", f"import sys; {crash}", "--save", "x"]
    done = bench("keep", "x", "--folder", str(tmp_path), "--", *command)
    assert done.returncode == 1
    assert f"kept nothing and ended with exit status {status}" in done.stderr


def test_a_command_that_keeps_its_run_itself_may_fail_all_the_same(tmp_path: Path):
    """Such as a load test with failed sessions."""
    file = save("x", "python", [], 1, tmp_path)
    program = f"import pathlib, sys; f = pathlib.Path({str(file)!r}); f.write_text(f.read_text()); sys.exit(1)"
    done = bench("keep", "x", "--folder", str(tmp_path), "--", "python", "-c", program, "--save", "x")
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_no_run_is_named(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({}))
    done = bench("again", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert "x.json: expected command, commit, machine and numbers" in done.stderr
