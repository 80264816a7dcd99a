"""The whole program, on random weights of the demo model's shape."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest import results
from loadtest.engine import cold_start
from loadtest.engine.__main__ import app
from loadtest.engine.models import DTYPES, source_of
from loadtest.engine.published import LANGUAGE_MODELS, MIMI
from serve_app.checkpoint.rules import check_codec, check_language_model
from serve_app.settings import MODELS_FOLDER

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


def test_random_weights_are_gone_afterwards() -> None:
    import torch

    with source_of("demo", True, torch.device("cpu"), "bfloat16") as source:
        assert (Path(source.checkpoint) / "config.json").is_file()
        assert source.dtype is DTYPES["bfloat16"]
    assert not Path(source.checkpoint).exists()
