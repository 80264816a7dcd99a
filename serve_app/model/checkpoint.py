"""Load a checkpoint in moshi's official format: everything is checked before anything large is read.

The modules are built by moshi's own loaders, so whatever they accept (old names of weights among it) is accepted here.
"""

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import sentencepiece
import torch
from moshi.models import loaders
from torch import Tensor

from serve_app.model.files import CONFIG_NAME, CheckpointError, CheckpointFiles, read_config, weight_names
from serve_app.model.rules import check_codec, check_language_model, codec_hop
from serve_app.speech import FRAME_SAMPLES, FRAMES_PER_SECOND, ModelInfo

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint"]

_CODEC_DECODER = ("decoder.", "decoder_transformer.", "upsample.")
_HEADS = "extra_heads."
_BUILD_ERRORS = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
_open: Any = partial(safetensors.safe_open, framework="pt")  # safetensors has no types
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: moshi's modules with their weights on the device, and the facts about them."""

    info: ModelInfo
    """What the rest of the service must know about the model."""
    lm: Any
    """moshi's `LMModel`."""
    mimi: Any
    """moshi's `MimiModel` without its decoder half, in float32 as moshi runs it."""
    device: torch.device
    """Where the weights are."""
    card: int
    """Audio codes run from 0 to `card - 1`."""
    text_card: int
    """Text tokens run from 0 to `text_card - 1`."""


def load_checkpoint(
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
    audio_delay_frames: int | None = None,
) -> Checkpoint:
    """Load a checkpoint from a folder in moshi's format, or from the Hugging Face hub.

    `source` is a folder or a hub id like `kyutai/stt-1b-en_fr`, whose files are downloaded once into `cache_dir` (None:
    the hub's own cache). `dtype` is the language model's; the codec stays in float32, as in moshi. `audio_delay_frames`
    replaces the delay that the checkpoint states in seconds.

    Raises CheckpointError for a missing or unreadable file, for weights that do not fit the configuration, and for a
    model that is no 24 kHz, 12.5 Hz speech-to-text model, before weights are loaded.
    """
    files = CheckpointFiles(source, cache_dir)
    config_path = files.find(CONFIG_NAME)
    config = read_config(config_path)
    check_language_model(config, config_path)
    delay, prefix = _delays(config, config_path, audio_delay_frames)
    lm_name, mimi_name, tokenizer_name, mimi_config_name = weight_names(config)
    mimi_config_path = files.find(mimi_config_name) if mimi_config_name else None
    mimi_config = check_codec(
        read_config(mimi_config_path) if mimi_config_path else None, mimi_config_path or config_path, config
    )
    tokenizer_path, mimi_path, lm_path = (files.find(name) for name in (tokenizer_name, mimi_name, lm_name))
    pieces = _pieces(tokenizer_path, config["text_card"])
    codec_shapes, lm_shapes = _shapes(mimi_path), _shapes(lm_path)
    mimi = _build_codec(mimi_config, config["n_q"], mimi_config_path or config_path)
    _check_weights(mimi, codec_shapes, mimi_path)
    lm_config = loaders.CheckpointInfo.from_hf_repo(
        source,
        moshi_weights=lm_path,
        mimi_weights=mimi_path,
        tokenizer=tokenizer_path,
        config_path=config_path,
        mimi_config_path=mimi_config_path,
    ).lm_config
    overrides = _without_heads(lm_shapes, config, lm_path)
    _check_weights(_build_lm(lm_config, overrides, dtype, config_path), lm_shapes, lm_path)

    _load_codec(mimi, mimi_path, device)
    lm = loaders.get_moshi_lm(lm_path, lm_config, device=device, dtype=dtype, lm_kwargs_overrides=overrides)
    lm.requires_grad_(False)
    info = ModelInfo(
        name=source,
        pieces=pieces,
        delay_frames=delay,
        silence_prefix_frames=prefix,
        context_frames=config["context"],
        codec_context_frames=math.ceil(mimi_config["transformer"]["context"] * codec_hop(mimi_config) / FRAME_SAMPLES),
        codebooks=config["n_q"],
        pause_heads=len(lm.extra_heads),
    )
    return Checkpoint(info, lm, mimi, device, config["card"], config["text_card"])


def _delays(config: dict[str, Any], path: Path, audio_delay_frames: int | None) -> tuple[int, int]:
    """Frames of delay and of silence before the first sample, from `stt_config` (both in seconds there)."""
    stt_config = config.get("stt_config") or {}
    seconds = {key: stt_config.get(f"audio_{key}_seconds", 0.0) for key in ("delay", "silence_prefix")}
    for key, value in seconds.items():
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise CheckpointError(f"{path}: expected stt_config.audio_{key}_seconds to be seconds, got {value!r}")
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


def _shapes(path: Path) -> dict[str, Tensor]:
    """Names and shapes of the weights in a file, as tensors without data; only the header is read."""
    if path.suffix not in (".safetensors", ".sft", ".sfts"):
        raise CheckpointError(f"{path}: expected a .safetensors file, got {path.suffix or 'no suffix'}")
    try:
        with _open(path) as weights:
            names = weights.keys()
            return {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: expected safetensors, got {error}") from error


def _check_weights(module: torch.nn.Module, shapes: dict[str, Tensor], path: Path) -> None:
    """Fit the shapes into a module on the meta device, through moshi's own rules for old names."""
    kept = {name: shape for name, shape in shapes.items() if not _of_codec_decoder(module, name)}
    try:
        result = module.load_state_dict(kept, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the shapes of the configuration, got: {error}") from error
    for problem, names in (("is missing", result.missing_keys), ("has no place", result.unexpected_keys)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"{path}: expected the weights of the configuration, but {names[0]} {problem}{more}")


def _of_codec_decoder(module: torch.nn.Module, name: str) -> bool:
    return hasattr(module, "decoder_transformer") and name.startswith(_CODEC_DECODER)


def _without_heads(shapes: dict[str, Tensor], config: dict[str, Any], path: Path) -> dict[str, int]:
    """Published weights may lack the pause heads that their configuration announces: then the model has none."""
    if not config.get("extra_heads_num_heads") or any(name.startswith(_HEADS) for name in shapes):
        return {}
    _log.warning("%s: no pause heads in the weights, although the configuration announces them", path)
    return {"extra_heads_num_heads": 0}


def _build_lm(config: Any, overrides: dict[str, int], dtype: torch.dtype, path: Path) -> torch.nn.Module:
    try:
        lm: torch.nn.Module = loaders.get_moshi_lm(
            None, config, device="meta", dtype=dtype, lm_kwargs_overrides=overrides
        )
    except _BUILD_ERRORS as error:
        raise CheckpointError(f"{path}: expected the configuration of a moshi model, got {error!r}") from error
    return lm


def _build_codec(config: dict[str, Any], codebooks: int, path: Path) -> Any:
    """Mimi's encoder half on the meta device; its decoder half is never given memory."""
    try:
        with torch.device("meta"):
            mimi = loaders.get_mimi(None, config, device="meta", num_codebooks=codebooks)
    except _BUILD_ERRORS as error:
        raise CheckpointError(f"{path}: expected the configuration of a Mimi codec, got {error!r}") from error
    mimi.decoder = mimi.decoder_transformer = None
    if hasattr(mimi, "upsample"):
        del mimi.upsample
    return mimi


def _load_codec(mimi: Any, path: Path, device: torch.device) -> None:
    """Give a codec on the meta device its weights."""
    with _open(path, device=str(device)) as weights:
        names = [name for name in weights.keys() if not name.startswith(_CODEC_DECODER)]  # noqa: SIM118
        state = {name: weights.get_tensor(name).float() for name in names}
    mimi.load_state_dict(state, assign=True)
    mimi.requires_grad_(False)
