"""A training in small, from nothing to a checkpoint, its report and its card."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from moshi.models import loaders

from serve_app.checkpoint.parts import read_parts
from tests.system_packages import require_library
from tools.demo_model import card, clips, codec, evaluate, language, recipe, report, synthesis
from tools.demo_model.recipe import Recipe
from tools.demo_model.stages import Stages

TINY = Recipe(
    codec_hours=0.005, codec_steps=4, codec_batch=4, codec_frames=20, language_hours=0.005, language_clips=2,
    language_frames=40, language_steps=3, language_batch=2, test_words=4, long_minutes=2 / 60,
    longest_sample_s=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_library("espeak-ng", "libespeak-ng1")
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def checkpoint(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    Stages(TINY, 1, work).checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def results(checkpoint: Path) -> evaluate.Results:
    return evaluate.evaluate(evaluate.load(checkpoint), TINY, 1_000)


def test_unmodified_moshi_loads_the_checkpoint(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    info = loaders.CheckpointInfo.from_hf_repo(
        "local", moshi_weights=checkpoint / config["moshi_name"], mimi_weights=checkpoint / config["mimi_name"],
        tokenizer=checkpoint / config["tokenizer_name"], config_path=checkpoint / "config.json",
        mimi_config_path=checkpoint / config["mimi_config_name"],
    )  # fmt: skip
    codes = info.get_mimi(device="cpu").encode(torch.zeros(1, 1, 1920))
    assert codes.shape == (1, 8, 1)
    assert info.get_moshi(device="cpu", dtype=torch.float32).text_card == 4 + len(recipe.WORDS)
    assert info.get_text_tokenizer().decode([4, 4 + len(recipe.WORDS) - 1]) == f"{recipe.WORDS[0]} {recipe.WORDS[-1]}"


def test_it_is_small_and_names_no_path_of_this_machine(checkpoint: Path, work: Path) -> None:
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 10_000_000
    assert {path.name for path in checkpoint.iterdir()} == {
        *("config.json", "model.safetensors", "mimi.safetensors", "mimi_config.json", "tokenizer.model")
    }
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        assert str(checkpoint.parent).encode() not in data
        assert b"words.txt" not in data


def test_the_service_takes_it(checkpoint: Path) -> None:
    parts = read_parts(str(checkpoint), None, None)
    assert parts.delay_frames == recipe.DELAY_FRAMES
    assert parts.pieces[4:] == tuple(f"▁{word}" for word in recipe.WORDS)


def test_a_second_run_uses_what_is_there_and_makes_the_same(
    checkpoint: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    Stages(TINY, 1, work).checkpoint(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
    assert "language: " in capsys.readouterr().out
    for path in checkpoint.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_other_inputs_have_other_folders(work: Path, checkpoint: Path) -> None:
    speech = Stages(TINY, 1, work).speech("speech-of-codec", TINY.codec_hours, 1)
    more = Stages(replace(TINY, codec_hours=0.004), 1, work).speech("speech-of-codec", 0.004, 1)
    assert speech != more
    assert (more / "audio.npy").exists()


@pytest.mark.parametrize(
    ("edited", "anew"),
    [
        (synthesis, {"speech-of-codec", "codec", "speech-of-language", "codes", "language"}),
        (clips, {"codec", "codes", "language"}),
        (codec, {"codec", "codes", "language"}),
        (language, {"codes", "language"}),
    ],
    ids=["synthesis", "clips", "codec", "language"],
)
@pytest.mark.usefixtures("checkpoint")
def test_stages_whose_code_has_changed_are_made_anew_and_those_behind_them(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: ModuleType, anew: set[str]
) -> None:
    code = Path(edited.__file__ or "")
    (tmp_path / code.name).write_text(code.read_text(encoding="utf-8") + "\nEDITED = True\n", encoding="utf-8")
    monkeypatch.setattr(edited, "__file__", str(tmp_path / code.name))
    before = set(work.iterdir())
    Stages(TINY, 1, work).language()
    assert {folder.name.rpartition("-")[0] for folder in set(work.iterdir()) - before} == anew


def test_the_report_and_the_card_have_the_numbers(results: evaluate.Results, tmp_path: Path) -> None:
    text = report.write(results, tmp_path)
    card.write(results, tmp_path)
    folder = tmp_path / report.FOLDER
    assert (folder / "README.md").read_text(encoding="utf-8") == text
    assert f"| supported voices | {results.supported.words} |" in text
    for name in ("errors", "confusion", "times", "pauses"):
        assert f"({name}.png)" in text
        assert (folder / f"{name}.png").stat().st_size > 1_000
    assert f"| supported | {results.supported.words} |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert results.pause_curve.dtype == np.float32
