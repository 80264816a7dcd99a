"""Everything of a checkpoint that is there before a weight is read: files, configuration, names and shapes."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import sentencepiece

from serve_app.checkpoint.files import CONFIG_NAME, CheckpointError, CheckpointFiles, read_config, weight_names
from serve_app.checkpoint.rules import check_codec, check_language_model
from serve_app.speech import FRAMES_PER_SECOND

LONGEST_DELAY_SECONDS = 60.0
"""Far beyond any model's; the configuration is wrong where it says more."""

_open: Any = partial(safetensors.safe_open, framework="np")  # safetensors has no types


@dataclass(frozen=True)
class CheckpointParts:
    """The checked parts of a checkpoint; all files are on this machine."""

    config: dict[str, Any]
    """The language model's configuration, moshi's `config.json`."""
    config_path: Path
    codec_config: dict[str, Any] | None
    """None stands for moshi's built-in configuration, the full-size Mimi."""
    codec_config_path: Path | None
    language_model_path: Path
    codec_path: Path
    tokenizer_path: Path
    language_model_shapes: dict[str, list[int]]
    codec_shapes: dict[str, list[int]]
    pieces: tuple[str, ...]
    """The text of each token."""
    delay_frames: int
    silence_prefix_frames: int


def read_parts(source: str, cache_dir: Path | None = None, audio_delay_frames: int | None = None) -> CheckpointParts:
    """Find, and where needed download, a checkpoint's files, and check what can be checked without its weights.

    The arguments are those of `load_checkpoint`. Small files come first: a configuration that this service cannot run
    costs no download of weights. Raises CheckpointError.
    """
    files = CheckpointFiles(source, cache_dir)
    config_path = files.find(CONFIG_NAME)
    config = read_config(config_path)
    check_language_model(config, config_path)
    delay, prefix = _delays(config, config_path, audio_delay_frames)
    names = weight_names(config, config_path)
    codec_config = codec_config_path = None
    if names.codec_config:
        codec_config_path = files.find(names.codec_config)
        codec_config = check_codec(read_config(codec_config_path), codec_config_path, config)
    tokenizer_path = files.find(names.tokenizer)
    pieces = _pieces(tokenizer_path, config["text_card"])
    codec_path, language_model_path = files.find(names.codec), files.find(names.language_model)
    return CheckpointParts(
        config=config,
        config_path=config_path,
        codec_config=codec_config,
        codec_config_path=codec_config_path,
        language_model_path=language_model_path,
        codec_path=codec_path,
        tokenizer_path=tokenizer_path,
        language_model_shapes=_shapes(language_model_path),
        codec_shapes=_shapes(codec_path),
        pieces=pieces,
        delay_frames=delay,
        silence_prefix_frames=prefix,
    )


def _delays(config: dict[str, Any], path: Path, audio_delay_frames: int | None) -> tuple[int, int]:
    """Frames of delay and of silence before the first sample, from `stt_config` (both in seconds there)."""
    stt_config = config.get("stt_config") or {}
    if not isinstance(stt_config, dict):
        raise CheckpointError(f"{path}: expected stt_config to be an object, got {stt_config!r}")
    seconds = {key: stt_config.get(f"audio_{key}_seconds", 0.0) for key in ("delay", "silence_prefix")}
    for key, value in seconds.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= LONGEST_DELAY_SECONDS:
            raise CheckpointError(
                f"{path}: expected stt_config.audio_{key}_seconds to be seconds, at most {LONGEST_DELAY_SECONDS:g}, "
                f"got {value!r}"
            )
    if audio_delay_frames is None:
        if "audio_delay_seconds" not in stt_config:
            raise CheckpointError(
                f"{path}: expected stt_config.audio_delay_seconds, got nothing; give the delay in frames if you know it"
            )
        audio_delay_frames = int(seconds["delay"] * FRAMES_PER_SECOND)
    elif audio_delay_frames < 0:
        raise CheckpointError(f"expected a delay of 0 frames or more, got {audio_delay_frames}")
    return audio_delay_frames, math.ceil(seconds["silence_prefix"] * FRAMES_PER_SECOND)


def _pieces(path: Path, text_card: int) -> tuple[str, ...]:
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(str(path))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a sentencepiece model, got {error}") from error
    if tokenizer.vocab_size() < text_card:
        raise CheckpointError(
            f"{path}: expected a piece for each of {text_card} tokens (text_card), got {tokenizer.vocab_size()} pieces"
        )
    return tuple(tokenizer.id_to_piece(index) for index in range(text_card))


def _shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes of the weights in a file; only its header is read."""
    if path.suffix not in (".safetensors", ".sft", ".sfts"):
        raise CheckpointError(f"{path}: expected a .safetensors file, got {path.suffix or 'no suffix'}")
    try:
        with _open(path) as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: expected safetensors, got {error}") from error
