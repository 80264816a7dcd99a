"""A checkpoint folder in moshi's official format, and where its parts are while it is being made."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from moshi.models import loaders
from safetensors.torch import save
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from serve_app.speech import PADDING_TOKEN
from tools.demo_model import codec, language, recipe

FILES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer.model",
}
"""Names of the files, as config.json states them."""

WORD_BIAS = 1.4
"""Added to the logits of words: half of the errors that are left are words left out; hardly one is invented."""

REST: dict[str, Any] = {
    "bias_proj": True,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0},
}


def codec_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights to keep of a trained codec: plain codebooks, and a decoder of zeros, for nothing has trained it."""
    kept = {}
    for name, weight in trained.items():
        weight = weight.float()
        if name.endswith("embedding_sum"):
            weight = weight / trained[name.replace("embedding_sum", "cluster_usage")].clamp(min=1e-5)[:, None]
        elif name.endswith("cluster_usage"):
            weight = torch.ones_like(weight)
        elif name.startswith(("decoder", "upsample")):
            weight = torch.zeros_like(weight)
        kept[name] = weight.to(
            torch.bfloat16 if name.startswith(("decoder", "upsample")) else torch.float32
        ).contiguous()
    return kept


def mimi_of(trained: dict[str, Tensor]) -> Any:
    """A `MimiModel` of moshi with these weights, as `codec_weights` gives them."""
    mimi = loaders.get_mimi(None, codec.CONFIG, device="cpu", num_codebooks=codec.CONFIG["quantizer"]["n_q"])
    mimi.load_state_dict(codec_weights(trained))
    mimi.requires_grad_(False)
    return mimi.eval()


def write(folder: Path, trained_codec: dict[str, Tensor], trained_language_model: dict[str, Tensor]) -> None:
    """Write all files of the checkpoint into an existing folder, each of them whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        part = Path(name)
        (part / FILES["mimi_name"]).write_bytes(save(codec_weights(trained_codec)))
        biased = trained_language_model | {"text_linear.bias": _word_bias()}
        weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in biased.items()}
        (part / FILES["moshi_name"]).write_bytes(save(weights))
        (part / FILES["mimi_config_name"]).write_text(json.dumps(codec.CONFIG, indent=1) + "\n", encoding="utf-8")
        config = json.dumps(language.CONFIG | FILES | REST, indent=1)
        (part / "config.json").write_text(config + "\n", encoding="utf-8")
        (part / FILES["tokenizer_name"]).write_bytes(tokenizer(part))
        for path in part.iterdir():
            os.replace(path, folder / path.name)


def _word_bias() -> Tensor:
    bias = torch.zeros(language.CONFIG["text_card"])
    bias[language.FIRST_WORD :] = WORD_BIAS
    return bias


def tokenizer(folder: Path) -> bytes:
    """A sentencepiece model with a piece for each word, in the order of `recipe.WORDS`; `folder` is for scratch."""
    text, prefix = folder / "words.txt", folder / "words"
    # Pieces are sorted by how often they come.
    lines = (" ".join([word] * (2 * len(recipe.WORDS) - number)) for number, word in enumerate(recipe.WORDS))
    text.write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), model_type="word", vocab_size=language.CONFIG["text_card"],
        unk_id=0, bos_id=1, eos_id=2, pad_id=PADDING_TOKEN, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    model.trainer_spec.ClearField("input")  # paths of this machine
    model.trainer_spec.ClearField("model_prefix")
    pieces = [piece.piece.removeprefix("▁") for piece in model.pieces][language.FIRST_WORD :]
    if pieces != list(recipe.WORDS):
        raise ValueError(f"expected a piece for each word, got {pieces}")
    for path in (text, prefix.with_suffix(".model"), prefix.with_suffix(".vocab")):
        path.unlink()
    return model.SerializeToString()
