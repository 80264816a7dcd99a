"""Which checkpoint is measured: one that is there, or one of the same shape with random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml
from moshi.models import loaders

from loadtest.engine.published import LANGUAGE_MODELS, MIMI
from loadtest.engine.random_checkpoint import write_checkpoint
from serve_app.checkpoint.files import CONFIG_NAME, CheckpointError, CheckpointFiles, read_config, weight_names
from serve_app.settings import resolve_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A checkpoint, and how to load it."""

    checkpoint: str
    """A folder or a Hugging Face id."""
    dtype: torch.dtype
    """The language model's."""
    audio_delay_frames: int | None


@contextmanager
def source_of(model: str, random_weights: bool, device: torch.device, dtype: str) -> Iterator[Source]:
    """The checkpoint of a model as the settings name it; random weights are gone after the block.

    `auto` as dtype is bfloat16 on a GPU and for random weights of Kyutai's models, else float32. Raises ValueError for
    a model that does not exist, and CheckpointError for one that is not what it should be.
    """
    if not random_weights:
        settings = resolve_model(model)
        kind = settings.dtype if dtype == "auto" else dtype
        automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
        yield Source(str(settings.checkpoint), DTYPES.get(kind, automatic), settings.audio_delay_frames)
        return
    published = LANGUAGE_MODELS.get(model)
    automatic = torch.bfloat16 if device.type == "cuda" or published else torch.float32
    kind = DTYPES.get(dtype, automatic)
    lm_config, mimi_config = (published, MIMI) if published else _shapes(model)
    with TemporaryDirectory(prefix="stt-random-") as folder:
        write_checkpoint(Path(folder), lm_config, mimi_config, dtype=kind)
        yield Source(folder, kind, None)


def _shapes(model: str) -> tuple[dict, dict]:
    """The configuration of a checkpoint, with names for all its files."""
    source = str(resolve_model(model).checkpoint)
    if not Path(source).is_dir():
        raise CheckpointError(f"{model}: expected a folder or one of {', '.join(LANGUAGE_MODELS)} for random weights")
    files = CheckpointFiles(source)
    path = files.find(CONFIG_NAME)
    config = read_config(path)
    names = weight_names(config, path)
    mimi = read_config(files.find(names.codec_config)) if names.codec_config else loaders._mimi_config
    return config | {
        "moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model",
        "mimi_config_name": "mimi_config.json",
    }, mimi  # fmt: skip


@contextmanager
def application_args(source: Source, device: str, slots: int | Literal["auto"]) -> Iterator[dict[str, Any]]:
    """The application's `args` that make an engine load this checkpoint, while the block runs."""
    with TemporaryDirectory(prefix="stt-engine-") as folder:
        model = Path(folder) / "model.yaml"
        fields = {
            "source": source.checkpoint,
            "dtype": str(source.dtype).removeprefix("torch."),
            "audio_delay_frames": source.audio_delay_frames,
        }
        model.write_text(yaml.safe_dump(fields), encoding="utf-8")
        yield {"model": str(model), "engine": {"device": device, "slots": slots}}
