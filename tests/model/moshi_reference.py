"""Tiny random checkpoints in the official format, and what moshi itself makes of them.

Every exactness test compares with moshi's own streaming Mimi and LMGen, fed as `moshi.run_inference` feeds them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sphn
import torch
from moshi.models import LMGen, loaders
from moshi.utils.compile import no_compile
from numpy.typing import NDArray

from serve_app.model import Checkpoint, SpeechModel
from serve_app.speech import FRAME_SAMPLES, SAMPLE_RATE_HZ

CPU = torch.device("cpu")
DEMO = Path(__file__).parents[2] / "configs" / "models" / "demo"

LM_CONFIG: dict[str, Any] = {
    "model_type": "stt", "card": 32, "n_q": 4, "dep_q": 0, "delays": [0] * 5, "dim": 32, "text_card": 40,
    "existing_text_padding_id": 3, "num_heads": 2, "num_layers": 3, "hidden_scale": 4.125, "causal": True,
    "layer_scale": None, "context": 12, "max_period": 100000.0, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 16, "depformer_dim_feedforward": None,
    "depformer_num_heads": 2, "depformer_num_layers": 1, "depformer_multi_linear": True, "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "conditioners": {}, "cross_attention": False, "extra_heads_num_heads": 4,
    "extra_heads_dim": 6, "lm_gen_config": {"temp": 0.0, "temp_text": 0.0},
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "moshi_name": "lm.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model",
    "mimi_config_name": "mimi.json",
}  # fmt: skip

# Like the real Mimi (two positions per frame, a downsampling convolution, layer scale), with a second residual layer
# so that dilations matter, and a ring of 5 frames.
MIMI_CONFIG: dict[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 24, "causal": True, "n_filters": 4, "n_residual_layers": 2, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7, "residual_kernel_size": 3,
        "last_kernel_size": 3, "norm": "none", "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 12, "n_q": 6, "bins": 32, "input_dimension": 24, "output_dimension": 24},
    "transformer": {
        "d_model": 24, "num_heads": 2, "num_layers": 2, "causal": True, "layer_scale": 0.5, "context": 10,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 48, "input_dimension": 24, "output_dimensions": [24],
    },
}  # fmt: skip


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a nested config; a key `a__b` changes b inside a, the value None removes a key."""
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for name in path:
            place = place[name]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return config


def speech() -> NDArray[np.float32]:
    """Words of the demo model, English then French, [frames, FRAME_SAMPLES]; said by espeak-ng."""
    samples, rate = sphn.read_opus(Path(__file__).with_name("speech.ogg"))
    samples = sphn.resample(samples, rate, SAMPLE_RATE_HZ)[0]
    frames = len(samples) // FRAME_SAMPLES
    return np.asarray(samples[: frames * FRAME_SAMPLES], np.float32).reshape(frames, FRAME_SAMPLES)


class Reference(NamedTuple):
    """Streams as moshi transcribes them; stream first, frame second."""

    audio: NDArray[np.float32]  # [streams, frames, FRAME_SAMPLES]
    codes: NDArray[np.int64]  # [streams, frames, codebooks]
    tokens: NDArray[np.int64]  # [streams, frames]
    pauses: NDArray[np.float32]  # [streams, frames, heads]
    margins: NDArray[np.float32]  # [streams], by how little the closest decision of each stream was taken

    def clearest(self, streams: int) -> "Reference":
        """The streams without near ties: those depend on the order of float additions, in moshi's batches too."""
        best = np.argsort(-self.margins)[:streams]
        return Reference(*(column[best] for column in self))


def moshi_modules(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Mimi and the language model as moshi loads them, independent of our loader."""
    config = json.loads((folder / "config.json").read_text())
    info = loaders.CheckpointInfo.from_hf_repo(
        "local", moshi_weights=folder / config["moshi_name"], mimi_weights=folder / config["mimi_name"],
        tokenizer=folder / config["tokenizer_name"], config_path=folder / "config.json",
        mimi_config_path=folder / config["mimi_config_name"],
    )  # fmt: skip
    return info.get_mimi(device="cpu"), info.get_moshi(device="cpu", dtype=dtype)


def code_margins(mimi: Any, latents: torch.Tensor) -> torch.Tensor:
    """How much closer the nearest codeword is than the second, relative to the projected latent; least per stream."""
    least = []
    for half in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        residual = half.input_proj(latents)[:, :, 0]
        norm = residual.norm(dim=-1)
        for layer in half.vq.layers[: half.n_q]:
            near = torch.cdist(residual, layer._codebook.embedding).topk(2, largest=False)
            least.append((near.values[:, 1] - near.values[:, 0]) / norm)
            residual = residual - layer._codebook.embedding[near.indices[:, 0]]
    return torch.stack(least).amin(0)


def transcribe(folder: Path, audio: torch.Tensor, dtype: torch.dtype = torch.float32) -> Reference:
    """What moshi's streaming Mimi and LMGen say, fed as `moshi.run_inference` feeds them, all streams in one batch."""
    mimi, lm = moshi_modules(folder, dtype)
    streams, frames = audio.shape[:2]
    logits: list[torch.Tensor] = []
    generator = LMGen(lm, use_sampling=False, temp=0, temp_text=0, on_text_logits_hook=logits.append)
    codes, tokens, pauses, margins = [], [], [], []
    with torch.no_grad(), no_compile(), mimi.streaming(streams), generator.streaming(streams):
        for frame in range(frames):
            latents = mimi.encode_to_latent(audio[:, frame, None], quantize=False)
            new = mimi.quantizer.encode(latents)  # together: mimi.encode
            if frame == 0:
                generator.step(new)
            text, heads = generator.step_with_extra_heads(new)
            codes.append(new[:, :, 0])
            tokens.append(text[:, 0, 0])
            pauses.append(torch.stack([head[:, 0, 0] for head in heads], -1) if heads else torch.zeros(streams, 0))
            best = logits[-1][:, 0, 0].float().topk(2).values
            margins.append(torch.minimum(code_margins(mimi, latents), best[:, 0] - best[:, 1]))
    return Reference(
        audio.numpy(),
        torch.stack(codes, 1).numpy(),
        torch.stack(tokens, 1).numpy(),
        torch.stack(pauses, 1).float().numpy(),
        torch.stack(margins).amin(0).numpy(),
    )


class Case(NamedTuple):
    """One checkpoint and what moshi makes of some streams."""

    folder: Path
    checkpoint: Checkpoint
    reference: Reference

    def model(self, slots: int) -> SpeechModel:
        return SpeechModel(self.checkpoint, slots)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "like the real Mimi": (LM_CONFIG, MIMI_CONFIG),
    # One position per frame (so no downsampling), odd ratios, a projection around the transformer, convolutions as
    # shortcuts, and a language model without pause heads.
    "one position per frame": (
        changed(LM_CONFIG, extra_heads_num_heads=0, layer_scale=0.7, norm="layer_norm", n_q=6, delays=[0] * 7),
        changed(
            MIMI_CONFIG, seanet__ratios=[128, 5, 3], seanet__n_residual_layers=1, seanet__true_skip=False,
            transformer__d_model=16, transformer__gating="silu", transformer__norm="rms_norm_f32",
            transformer__context=7,
        ),
    ),
    # Four positions per frame in a ring whose size is no multiple of four; no residual layers.
    "four positions per frame": (
        changed(LM_CONFIG, num_layers=1, context=5, norm="rms_norm", n_q=2, delays=[0] * 3),
        changed(
            MIMI_CONFIG, seanet__ratios=[8, 60], seanet__n_residual_layers=0, seanet__pad_mode="replicate",
            seanet__last_kernel_size=2, transformer__layer_scale=None, transformer__context=11,
        ),
    ),
}  # fmt: skip

STREAMS, FRAMES = 32, 56
NEAR_TIE = 1e-5
