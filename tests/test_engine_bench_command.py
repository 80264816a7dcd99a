"""The whole program, on random weights of the demo model's shape."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from loadtest import results
from loadtest.engine import admission, cold_start
from loadtest.engine.__main__ import app
from loadtest.engine.models import DTYPES, source_of
from loadtest.engine.published import LANGUAGE_MODELS, MIMI
from serve_app.checkpoint.rules import check_codec, check_language_model
from serve_app.engine.batcher import Batcher
from serve_app.errors import StepFailed
from serve_app.settings import MODELS_FOLDER
from serve_app.speech import ModelInfo

QUICK = ("--random-weights", "--seconds", "0.4", "--no-search", "--threads", "1", "--device", "cpu")


def test_json_has_what_scripts_read_and_the_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    command = [*QUICK, "--streams", "2,1", "--json", "--plot", str(tmp_path / "steps.svg"), "--save"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert list(result["streams"]) == ["1", "2"]
    for count in result["streams"].values():
        assert count["ours_ms"] > 0
        assert count["moshi_ms"] > 0
        assert count["ratio"] == pytest.approx(count["moshi_ms"] / count["ours_ms"], rel=0.01)
        assert count["tokens_equal"] is True
    assert isinstance(result["realtime_streams"], int)
    assert result["bytes_per_stream"] > 100_000
    assert result["floor_share"] > 0
    assert result["device"]
    assert {(load["streams"], load["age"], load["load"]) for load in result["loads"]} == {
        (streams, age, load)
        for streams in (1, 2)
        for age in ("early", "full")
        for load in ("aligned", "random", "sparse")
    }
    assert (tmp_path / "steps.svg").stat().st_size > 1000
    [saved] = tmp_path.glob("*.json")
    assert results.load(saved).numbers == result


def test_the_table_has_a_line_for_each_load() -> None:
    done = CliRunner().invoke(app, [*QUICK, "--streams", "1", "--ages", "early"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["1", "early", load] for load in ("aligned", "random", "sparse")
    ]
    assert "memory per stream: " in done.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--streams", "0"], "--streams: expected numbers"),
        (["--streams", "many"], "--streams: expected numbers"),
        (["--ages", "old"], "--ages: expected early, full"),
        (["--admission", "--streams", "1,8"], "--streams: expected one number from 1 on, or auto"),
        (["--admission", "--streams", "0"], "--streams: expected one number from 1 on, or auto"),
        (["--cold-start", "--admission"], "--cold-start and --admission: expected one of them"),
        (["--cold-start", "--save"], "--save and --plot: expected neither"),
        (["--admission", "--plot", "x.svg"], "--save and --plot: expected neither"),
        (["--model", "nonsense"], "expected one of demo"),
        (["--model", "someone/something", "--random-weights"], "expected a folder or one of stt-1b-en_fr"),
    ],
)
def test_wrong_options_say_what_was_expected(options: list[str], expected: str) -> None:
    done = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2)
    assert expected in done.output


def test_the_published_shapes_are_models_that_the_service_runs(tmp_path: Path) -> None:
    assert {path.stem for path in MODELS_FOLDER.glob("*.yaml")} - {"demo"} == set(LANGUAGE_MODELS)
    for config in LANGUAGE_MODELS.values():
        check_language_model(config, tmp_path)
        check_codec(MIMI, tmp_path, config)


def test_an_engine_starts_in_a_process_of_its_own_and_tells_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = cold_start.measure({"model": "demo", "engine": {"device": "cpu", "slots": 2}})
    assert {"process_seconds", "imports_seconds", "weights_seconds", "warm_up_seconds", "first_token_seconds"} < set(
        seconds
    )
    assert seconds["total_seconds"] >= sum(value for name, value in seconds.items() if name != "total_seconds") - 0.01
    cold_start.show(seconds, as_json=False)
    assert "process start to first token" in capsys.readouterr().out


def test_an_engine_that_does_not_start_says_why() -> None:
    with pytest.raises(cold_start.ColdStartFailed, match="expected"):
        cold_start.measure({"model": "/nowhere", "engine": {"device": "cpu", "slots": 2}})


def test_an_engine_lets_in_as_many_streams_as_it_has_slots() -> None:
    options = ["--random-weights", "--device", "cpu", "--admission", "--streams", "3", "--ages", "early"]
    done = CliRunner().invoke(app, [*options, "--seconds", "0.5", "--json"])
    assert done.exit_code == 0, done.output
    admitted = json.loads(done.stdout.splitlines()[-1])
    assert (admitted["slots"], admitted["streams"]) == (3, 3)
    assert admitted["refusal"] == "all 3 slots are taken"
    assert admitted["tries"] > 0
    assert 0 < admitted["before_p50_ms"] <= admitted["before_p99_ms"]
    assert 0 < admitted["after_p50_ms"] <= admitted["after_p99_ms"]


def test_an_engine_chooses_its_slots_where_none_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def measure(args: dict[str, Any], *_: object) -> NoReturn:
        asked.append(args["engine"]["slots"])
        raise admission.AdmissionFailed("enough")

    monkeypatch.setattr(admission, "measure", measure)
    for streams in ([], ["--streams", "auto"], ["--streams", "3"]):
        done = CliRunner().invoke(app, ["--random-weights", "--device", "cpu", "--admission", *streams])
        assert (done.exit_code, "enough" in done.output) == (1, True), done.output
    assert asked == ["auto", "auto", 3]


class OddModel:
    """Two slots, and a step that does what it is told."""

    slots = 2

    def __init__(self, step: Callable[[], object], context_frames: int = 1) -> None:
        self.info = ModelInfo("odd", ("a",), 6, 0, context_frames, 10, 8, 4)
        self._step = step

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Nothing to do."""

    def step(self, slots: NDArray[np.int64], frames: NDArray[np.float32]) -> NoReturn:
        self._step()
        raise ValueError("odd")


def admit(monkeypatch: pytest.MonkeyPatch, model: OddModel, fill: bool = False) -> tuple[str, list[str]]:
    """What an engine with this model fails with, and what was told before."""
    monkeypatch.setattr(admission, "load_model", lambda _: model)
    monkeypatch.setattr(admission, "STOP_SECONDS", 0.1)
    told: list[str] = []
    with pytest.raises(admission.AdmissionFailed) as failed:
        admission.measure({}, 0.3, fill, told.append)
    return str(failed.value), told


def test_an_engine_that_gives_no_frame_back_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    try:
        failure, _ = admit(monkeypatch, OddModel(lambda: stuck.wait(20)))
    finally:
        stuck.set()
    assert failure == "no frame came back within 0.3 s"


def test_a_model_that_fails_ends_the_wait_for_full_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_at = time.monotonic()

    def fail_later() -> None:
        time.sleep(1.0)  # by then both slots are taken

    failure, told = admit(monkeypatch, OddModel(fail_later, context_frames=1000), fill=True)
    assert "the model failed on a step: ValueError: odd" in failure
    assert told[-1] == "waiting until every context is full"
    assert time.monotonic() - begun_at < 10


def test_a_model_that_fails_ends_the_letting_in(monkeypatch: pytest.MonkeyPatch) -> None:
    failure, told = admit(monkeypatch, OddModel(int))
    assert "the model failed on a step: ValueError: odd" in failure
    assert told == ["letting up to 2 streams in"]


def test_a_broken_engine_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Batcher) -> NoReturn:
        raise StepFailed("this engine has stopped")

    monkeypatch.setattr(Batcher, "open", refuse)
    assert admit(monkeypatch, OddModel(int))[0] == "this engine has stopped"


def test_an_engine_that_does_not_stop_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Batcher.stop

    def never(batcher: Batcher, timeout: float) -> NoReturn:
        stop(batcher)  # its thread would go on beside other tests
        raise TimeoutError(f"the step in flight did not end within {timeout} s")

    monkeypatch.setattr(Batcher, "stop", never)
    options = ["--random-weights", "--device", "cpu", "--admission", "--streams", "2", "--ages", "early"]
    done = CliRunner().invoke(app, [*options, "--seconds", "0.4"])
    assert done.exit_code == 1
    assert "the engine does not stop: the step in flight did not end" in done.output


def test_random_weights_are_gone_afterwards() -> None:
    import torch

    with source_of("demo", True, torch.device("cpu"), "bfloat16") as source:
        assert (Path(source.checkpoint) / "config.json").is_file()
        assert source.dtype is DTYPES["bfloat16"]
    assert not Path(source.checkpoint).exists()
