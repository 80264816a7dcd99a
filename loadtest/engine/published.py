"""The shapes of Kyutai's published models, so that they can be built with random weights without a download."""

from typing import Any

from moshi.models import loaders

_NAMES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "tokenizer_name": "tokenizer.model",
    "mimi_config_name": "mimi_config.json",
}

_STT_2_6B: dict[str, Any] = {
    "model_type": "stt", "card": 2048, "n_q": 32, "dep_q": 0, "delays": [0] * 33, "dim": 2048, "text_card": 4000,
    "existing_text_padding_id": 3, "num_heads": 32, "num_layers": 48, "hidden_scale": 4.125, "causal": True,
    "layer_scale": None, "context": 375, "max_period": 100000.0, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 1024, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_dim_feedforward": None, "depformer_multi_linear": True, "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "conditioners": {}, "cross_attention": False,
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    **_NAMES,
}  # fmt: skip

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "stt-1b-en_fr": {
        **_STT_2_6B, "num_heads": 16, "num_layers": 16, "context": 750, "text_card": 8000,
        "extra_heads_num_heads": 4, "extra_heads_dim": 6,
        "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    },
    "stt-2.6b-en": _STT_2_6B,
}  # fmt: skip
"""config.json of each model, by its name in `configs/models`; their weights are published in bfloat16."""

MIMI: dict[str, Any] = loaders._mimi_config
"""Their codec."""
