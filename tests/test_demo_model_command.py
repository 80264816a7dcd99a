"""What the command says when it cannot go on."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.demo_model.__main__ import app
from tools.demo_model.stages import Stages
from tools.demo_model.training import TrainingError
from tools.espeak import SpeechError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full: free some space and run again",
        ),
        (
            TrainingError("codec: expected a finite loss, got nan at step 7 with seed 1"),
            "got nan at step 7 with seed 1",
        ),
        (SpeechError("espeak-ng is missing: install it"), "demo-model: espeak-ng is missing: install it"),
        (KeyboardInterrupt(), "interrupted; the next run goes on with what is in "),
    ],
)
def test_a_training_that_stops_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, said: str
) -> None:
    def fail(stages: Stages, folder: Path) -> None:
        raise error

    monkeypatch.setattr(Stages, "checkpoint", fail)
    result = CliRunner().invoke(app, ["train", "--checkpoint", str(tmp_path), "--work", str(tmp_path / "work")])
    assert result.exit_code == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_report_on_no_checkpoint(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", "--checkpoint", str(tmp_path)])
    assert result.exit_code == 1
    assert "config.json: expected this file" in result.stderr
