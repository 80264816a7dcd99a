"""Where a checkpoint's files are: a local folder or the Hugging Face hub."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

CONFIG_NAME = "config.json"
# moshi's own defaults, as in its `loaders`, whose import takes torch and seconds.
MOSHI_NAME = "model.safetensors"
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT_TOKENIZER_NAME = "tokenizer_spm_32k_3.model"

_HUB_PREFIX = "hf://"
_HUB_FILE = re.compile(r"hf://\w[\w.-]*/\w[\w.-]*/.+")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file, what was expected and what came."""


class CheckpointFiles:
    """Finds the files of one checkpoint by name, downloading them where they are not local.

    Names follow moshi (`loaders.hf_get`): a name in the checkpoint, or `hf://owner/repository/name`.
    """

    def __init__(self, source: str, cache_dir: Path | None = None) -> None:
        """`source` is a folder or a hub id; raises CheckpointError where it is neither."""
        self._source = source
        self._cache_dir = cache_dir
        self._folder = Path(source) if Path(source).is_dir() else None
        if self._folder is None and (Path(source).exists() or not _HUB_ID.fullmatch(source)):
            raise CheckpointError(
                f"{source}: expected a folder with a {CONFIG_NAME}, or a hub id like kyutai/stt-1b-en_fr; "
                f"got {'a file' if Path(source).exists() else 'neither'}"
            )

    def find(self, name: str) -> Path:
        """Path of a file; raises CheckpointError where it is missing or cannot be downloaded."""
        if name.startswith(_HUB_PREFIX):
            owner, repository, inside = name.removeprefix(_HUB_PREFIX).split("/", 2)
            return self._download(f"{owner}/{repository}", inside)
        if self._folder is None:
            return self._download(self._source, name)
        path = self._folder / name
        if not path.is_file():
            present = ", ".join(sorted(entry.name for entry in self._folder.iterdir())) or "nothing"
            raise CheckpointError(f"{path}: expected this file, the folder holds {present}")
        return path

    def _download(self, repository: str, name: str) -> Path:
        try:
            return Path(hf_hub_download(repository, name, cache_dir=self._cache_dir))
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{repository}: the hub knows no such model (or it is private: log in with `hf auth login`)"
            ) from error
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"{repository}/{name}: not in the local cache, and the hub cannot be reached; check the network, "
                f"or give a local folder that holds the checkpoint"
            ) from error
        except EntryNotFoundError as error:
            raise CheckpointError(f"{repository}: expected the file {name} on the hub, it is not there") from error
        except HFValidationError as error:
            raise CheckpointError(f"{repository}: not a hub id ({error})") from error
        except (OSError, ValueError) as error:  # requests' and httpx's errors among them
            raise CheckpointError(f"{repository}/{name}: the download failed: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError where the file holds anything else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


class WeightNames(NamedTuple):
    """Names of a checkpoint's files, as `CheckpointFiles.find` takes them."""

    language_model: str
    codec: str
    tokenizer: str
    codec_config: str | None


def weight_names(config: dict[str, Any], path: Path) -> WeightNames:
    """The names in `config`, moshi's own defaults where they are absent. Raises CheckpointError for no names."""
    for key in ("moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name"):
        name = config.get(key)
        if name is not None and not (isinstance(name, str) and name and "\0" not in name):
            raise CheckpointError(f"{path}: expected {key} to be the name of a file, got {name!r}")
        if name is not None and name.startswith(_HUB_PREFIX) and not _HUB_FILE.fullmatch(name):
            raise CheckpointError(f"{path}: expected {key} to be hf://owner/repository/name, got {name!r}")
    return WeightNames(
        config.get("moshi_name") or MOSHI_NAME,
        config.get("mimi_name") or MIMI_NAME,
        config.get("tokenizer_name") or TEXT_TOKENIZER_NAME,
        config.get("mimi_config_name"),
    )
