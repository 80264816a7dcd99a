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
import torch
from moshi.models import loaders

from serve_app.checkpoint.files import CheckpointError
from serve_app.checkpoint.parts import read_parts
from serve_app.checkpoint.rules import check_codec, codec_hop
from serve_app.speech import FRAME_SAMPLES, ModelInfo

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
    parts = read_parts(source, cache_dir, audio_delay_frames)
    config, codec_path = parts.config, parts.codec_config_path or parts.config_path
    mimi_config = parts.codec_config or check_codec(loaders._mimi_config, codec_path, config)
    mimi = _build_codec(mimi_config, config["n_q"], codec_path)
    _check_weights(mimi, parts.codec_shapes, parts.codec_path)
    lm_path = parts.language_model_path
    lm_config = loaders.CheckpointInfo.from_hf_repo(
        source,
        moshi_weights=lm_path,
        mimi_weights=parts.codec_path,
        tokenizer=parts.tokenizer_path,
        config_path=parts.config_path,
        mimi_config_path=parts.codec_config_path,
    ).lm_config
    overrides = _without_heads(parts.language_model_shapes, config, lm_path)
    lm_meta = _build_lm(lm_config, overrides, dtype, parts.config_path)
    _check_weights(lm_meta, parts.language_model_shapes, lm_path)

    _load_codec(mimi, parts.codec_path, device)
    lm = loaders.get_moshi_lm(lm_path, lm_config, device=device, dtype=dtype, lm_kwargs_overrides=overrides)
    lm.requires_grad_(False)
    info = ModelInfo(
        name=source,
        pieces=parts.pieces,
        delay_frames=parts.delay_frames,
        silence_prefix_frames=parts.silence_prefix_frames,
        context_frames=config["context"],
        codec_context_frames=math.ceil(mimi_config["transformer"]["context"] * codec_hop(mimi_config) / FRAME_SAMPLES),
        codebooks=config["n_q"],
        pause_heads=len(lm.extra_heads),
    )
    return Checkpoint(info, lm, mimi, device, config["card"], config["text_card"])


def _check_weights(module: torch.nn.Module, shapes: dict[str, list[int]], path: Path) -> None:
    """Fit tensors without data into a module on the meta device, through moshi's own rules for old names."""
    kept = {
        name: torch.empty(shape, device="meta") for name, shape in shapes.items() if not _of_codec_decoder(module, name)
    }
    try:
        result = module.load_state_dict(kept, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        # torch lists every weight; one shows what is wrong.
        first, *others = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(
            f"{path}: expected the shapes of the configuration, got: {first}{_more(others)}"
        ) from error
    for problem, names in (("is missing", result.missing_keys), ("has no place", result.unexpected_keys)):
        if names:
            first, *others = names
            raise CheckpointError(
                f"{path}: expected the weights of the configuration, but {first} {problem}{_more(others)}"
            )


def _more(others: list[str]) -> str:
    return f" (and {len(others)} more)" if others else ""


def _of_codec_decoder(module: torch.nn.Module, name: str) -> bool:
    return hasattr(module, "decoder_transformer") and name.startswith(_CODEC_DECODER)


def _without_heads(shapes: dict[str, list[int]], config: dict[str, Any], path: Path) -> dict[str, int]:
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
