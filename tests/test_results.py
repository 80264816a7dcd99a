"""Runs that are kept can be read again, and say where they come from."""

import json
from pathlib import Path

import pytest

from loadtest.results import FOLDER, Machine, UnusableResult, load, save


def test_a_run_is_kept_with_command_commit_machine_and_numbers(tmp_path: Path) -> None:
    file = save("bench", "python -m loadtest.engine", ["--slots", "1 2"], {"step_s": 0.01}, tmp_path)
    assert file == tmp_path / "bench.json"
    assert set(json.loads(file.read_text())) == {"command", "commit", "machine", "numbers"}
    result = load(file)
    assert result.command == "python -m loadtest.engine --slots '1 2'"
    assert result.numbers == {"step_s": 0.01}
    assert result.machine == Machine.here()
    assert result.machine.cores >= 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": "x", "commit": "y", "machine": {}, "numbers": 1}'])
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UnusableResult, match=r"x\.json: expected command, commit, machine and numbers"):
        load(tmp_path / "x.json")


def test_every_run_in_the_project_can_be_read() -> None:
    for file in FOLDER.glob("*.json"):
        assert load(file).command
