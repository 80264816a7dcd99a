"""What is refused of a checkpoint before a weight is read: the file, the key, what was expected, what came."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.checkpoint.files import MIMI_NAME, MOSHI_NAME, TEXT_TOKENIZER_NAME, CheckpointError
from serve_app.checkpoint.parts import read_parts
from serve_app.settings import MODELS_FOLDER, PROJECT_ROOT

DEMO = MODELS_FOLDER / "demo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint, to be broken."""
    return Path(shutil.copytree(DEMO, tmp_path / "checkpoint"))


def configure(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_parts_of_the_demo_model():
    parts = read_parts(str(DEMO))
    assert (parts.delay_frames, parts.silence_prefix_frames, len(parts.pieces)) == (6, 0, 46)
    assert parts.language_model_shapes["text_linear.weight"] == [46, 128]
    assert parts.codec_path == DEMO / "mimi.safetensors"


def test_no_torch_is_needed():
    program = f"import sys; from serve_app.checkpoint.parts import read_parts; read_parts({str(DEMO)!r})"
    script = f"{program}; assert not {{'torch', 'moshi', 'ray'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PROJECT_ROOT)


def test_the_default_names_are_moshis():
    from moshi.models import loaders

    assert (MOSHI_NAME, MIMI_NAME) == (loaders.MOSHI_NAME, loaders.MIMI_NAME)
    assert loaders.TEXT_TOKENIZER_NAME == TEXT_TOKENIZER_NAME


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stt_config": [1]}, r"expected stt_config to be an object, got \[1\]"),
        ({"stt_config": "x"}, "expected stt_config to be an object, got 'x'"),
        ({"stt_config": {"audio_delay_seconds": 1e300}}, "audio_delay_seconds to be seconds, at most 60, got 1e.300"),
        ({"stt_config": {"audio_delay_seconds": True}}, "audio_delay_seconds to be seconds, at most 60, got True"),
        ({"moshi_name": 5}, "expected moshi_name to be the name of a file, got 5"),
        ({"mimi_name": [""]}, "expected mimi_name to be the name of a file"),
        ({"mimi_config_name": {}}, "expected mimi_config_name to be the name of a file"),
        ({"tokenizer_name": ""}, "expected tokenizer_name to be the name of a file, got ''"),
        ({"moshi_name": "hf://kyutai"}, "expected moshi_name to be hf://owner/repository/name, got 'hf://kyutai'"),
        ({"context": 10**12}, "expected context to be at most 65536, got 1000000000000"),
        ({"n_q": 10**12}, "expected n_q to be at most 256, got 1000000000000"),
        ({"num_layers": 10**9}, "expected num_layers to be at most 1024"),
        ({"text_card": 10**9}, "expected text_card to be at most 1048576"),
        ({"card": 2**15}, "expected card to be at most 32767, got 32768"),
    ],
)
def test_odd_values_of_the_configuration(folder: Path, changes: dict[str, Any], message: str):
    configure(folder / "config.json", changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_parts(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 10**12}, "expected transformer.context to be at most 65536"),
        ({"num_layers": "x"}, "expected transformer.num_layers to be a positive whole number, at most 1024, got 'x'"),
        ({"d_model": 10**12}, "expected transformer.d_model to be a multiple"),
    ],
)
def test_odd_values_of_the_codecs_configuration(folder: Path, changes: dict[str, Any], message: str):
    file = folder / "mimi_config.json"
    transformer = json.loads(file.read_text())["transformer"]
    configure(file, {"transformer": transformer | changes})
    with pytest.raises(CheckpointError, match=rf"mimi_config\.json: {message}"):
        read_parts(str(folder))


def test_nested_too_deeply(folder: Path):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: expected JSON"):
        read_parts(str(folder))


def test_cut_off_weights(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected safetensors, got"):
        read_parts(str(folder))
