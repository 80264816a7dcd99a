"""Checkpoints with random weights in the official format: a model's shape and speed without its download."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from moshi.models import loaders
from moshi.utils.compile import no_compile
from safetensors.torch import save_file

from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ

NOT_OF_THE_MODEL = (
    *("model_type", "lm_gen_config", "stt_config", "moshi_name", "mimi_name", "tokenizer_name"),
    *("mimi_config_name", "model_id"),
)
"""Keys of config.json that moshi's loader takes out before it builds the language model."""


def write_checkpoint(
    folder: Path,
    lm_config: dict[str, Any],
    mimi_config: dict[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A random checkpoint in the official format; `dtype` is the language model's. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    (folder / lm_config["mimi_config_name"]).write_text(json.dumps(mimi_config))
    (folder / lm_config["tokenizer_name"]).write_bytes(train_tokenizer(lm_config["text_card"]))
    save_file(build_lm(lm_config, dtype), folder / lm_config["moshi_name"])
    save_file(build_mimi(mimi_config), folder / lm_config["mimi_name"])
    (folder / "config.json").write_text(json.dumps(lm_config))
    return folder


def train_tokenizer(pieces: int) -> bytes:
    """A sentencepiece model with exactly this many pieces, ids laid out as Kyutai's."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (
        letters[i // 676 % 26] + letters[i // 26 % 26] + letters[i % 26] + "s" * (i // 17576) for i in range(pieces)
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=model, vocab_size=pieces, model_type="word", pad_id=3,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def build_lm(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of a random language model."""
    kept = {key: value for key, value in config.items() if key not in NOT_OF_THE_MODEL}
    lm = loaders.get_moshi_lm(None, kept, device="cpu", dtype=dtype)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if "in_proj" in name and dtype == torch.float32:
                # Sharp attention: what a wrong mask shows must not drown in an average. But it makes so much of every
                # rounding that in bfloat16 no two ways to compute a context of 750 positions agree.
                weight.mul_(3)
            if name.endswith("alpha"):
                weight.uniform_(0.5, 1.5)
    return {name: weight.contiguous() for name, weight in lm.state_dict().items()}


def build_mimi(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a random codec whose codewords lie where its latents lie, so that all codes occur."""
    mimi = loaders.get_mimi(None, config, num_codebooks=config["quantizer"]["n_q"])
    with torch.no_grad(), no_compile():
        for name, weight in mimi.named_parameters():
            if "in_proj" in name or name.endswith("layer_scale_1.scale"):
                weight.mul_(3)
            elif name.startswith("encoder.") and name.endswith("weight"):
                weight.mul_(1.5)  # or the audio fades away on its way through the convolutions
        latents = mimi._encode_to_unquantized_latent(noise(8, 40, seed=7).view(8, 1, -1))
        for half in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
            residual = half.input_proj(latents).transpose(1, 2).flatten(0, 1)
            for layer in half.vq.layers:
                codebook = layer._codebook
                mixture = torch.randn(codebook.codebook_size, len(residual)) / len(residual) ** 0.5
                embedding = residual.mean(0) + mixture @ (residual - residual.mean(0))  # their mean and covariance
                codebook.cluster_usage.uniform_(0.5, 2.0)
                codebook.embedding_sum.copy_(embedding * codebook.cluster_usage[:, None])
                codebook._initialized.fill_(1)
                residual = residual - embedding[torch.cdist(residual, embedding).argmin(-1)]
    return {name: weight.contiguous() for name, weight in mimi.state_dict().items()}


def noise(streams: int, frames: int, seed: int = 0) -> torch.Tensor:
    """Audio [streams, frames, FRAME_SAMPLES] whose loudness and colour change from frame to frame."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    audio = rng.standard_normal((streams, len(time)))
    for stream in audio:
        pitch = rng.uniform(80, 2000) * (1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time))
        stream += 2 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ)
    audio *= np.repeat(rng.uniform(0.0, 0.3, (streams, frames)), FRAME_SAMPLES, axis=1)
    return torch.from_numpy(audio.astype(np.float32)).view(streams, frames, FRAME_SAMPLES)
