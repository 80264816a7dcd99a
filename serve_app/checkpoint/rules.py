"""What a checkpoint's configuration must say so that this service can run it."""

from pathlib import Path
from typing import Any

from serve_app.checkpoint.files import CheckpointError
from serve_app.speech import END_OF_PADDING_TOKEN, FRAME_SAMPLES, FRAMES_PER_SECOND, PADDING_TOKEN, SAMPLE_RATE_HZ

INT16_CARDINALITY = 2**15
"""Audio codes travel as int16."""

MOST = {
    "card": INT16_CARDINALITY - 1,
    "n_q": 256,
    "dim": 2**16,
    "text_card": 2**20,
    "num_heads": 1024,
    "num_layers": 1024,
    "context": 2**16,
}
"""Far beyond any model's; where a configuration says more, it is wrong, and building the model would never end."""


def check_language_model(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError unless `config` (moshi's config.json) is a speech-to-text model as Kyutai's."""

    def require(key: str, good: bool, expected: str) -> None:
        if not good:
            raise CheckpointError(f"{path}: expected {key} to be {expected}, got {config.get(key, 'nothing')!r}")

    require("model_type", config.get("model_type", "stt") == "stt", "'stt'")
    for key, most in MOST.items():
        require(key, _positive(config.get(key)), "a positive whole number")
        require(key, config[key] <= most, f"at most {most}")
    require("dep_q", config.get("dep_q") == 0, "0 (a speech-to-text model generates no audio)")
    require("n_q", config["n_q"] >= 2, "at least 2")
    require("dim", config["dim"] % (2 * config["num_heads"]) == 0, "a multiple of twice num_heads")
    require("delays", config.get("delays") == [0] * (config["n_q"] + 1), f"{config['n_q'] + 1} zeros (n_q + 1)")
    require("existing_text_padding_id", config.get("existing_text_padding_id", 3) == PADDING_TOKEN, str(PADDING_TOKEN))
    end = config.get("existing_text_end_padding_id", 0)
    require("existing_text_end_padding_id", end == END_OF_PADDING_TOKEN, str(END_OF_PADDING_TOKEN))
    require("causal", config.get("causal", True) is True, "true")
    require("positional_embedding", config.get("positional_embedding") == "rope", "'rope'")
    require("kv_repeat", config.get("kv_repeat", 1) == 1, "1")
    require("text_card_out", config.get("text_card_out") in (None, config["text_card"]), "absent, or text_card")
    for key in (
        *("conditioners", "cross_attention", "quantize", "lora", "lora_name", "norm_emb", "weights_per_step"),
        *("skip_self_attn", "demux_second_stream", "demux_second_text_stream"),
    ):
        require(key, not config.get(key), "absent or empty")
    fuser = config.get("fuser") or {}
    used = isinstance(fuser, dict) and any(fuser.get(method) for method in ("sum", "cross", "prepend"))
    require("fuser", isinstance(fuser, dict) and not used, "absent, or without conditions")


def check_codec(config: dict[str, Any], path: Path, language_model: dict[str, Any]) -> dict[str, Any]:
    """Raise CheckpointError unless a Mimi configuration fits this service and the language model; returns it."""

    def require(key: str, good: bool, expected: str, got: object) -> None:
        if not good:
            raise CheckpointError(f"{path}: expected {key} to be {expected}, got {got!r}")

    for key in ("seanet", "quantizer", "transformer"):
        require(key, isinstance(config.get(key), dict), "an object", config.get(key, "nothing"))
    seanet, quantizer, transformer = config["seanet"], config["quantizer"], config["transformer"]
    rate, frame_rate = config.get("sample_rate"), config.get("frame_rate")
    require("sample_rate", rate == SAMPLE_RATE_HZ, f"{SAMPLE_RATE_HZ} Hz", rate)
    require("frame_rate", frame_rate == FRAMES_PER_SECOND, f"{FRAMES_PER_SECOND} Hz", frame_rate)
    require("channels", config.get("channels") == 1, "1", config.get("channels"))
    ratios = seanet.get("ratios")
    good = isinstance(ratios, list) and all(map(_positive, ratios)) and FRAME_SAMPLES % codec_hop(config) == 0
    require("seanet.ratios", good, f"factors whose product divides {FRAME_SAMPLES}", ratios)
    require("seanet.norm", seanet.get("norm", "none") == "none", "'none'", seanet.get("norm"))
    context, positions = transformer.get("context"), FRAME_SAMPLES // codec_hop(config)
    good = _positive(context) and context >= positions
    require("transformer.context", good, f"at least {positions}, the positions of one frame", context)
    require("transformer.context", context <= MOST["context"], f"at most {MOST['context']}", context)
    layers = transformer.get("num_layers")
    good = _positive(layers) and layers <= MOST["num_layers"]
    require("transformer.num_layers", good, f"a positive whole number, at most {MOST['num_layers']}", layers)
    width, heads = transformer.get("d_model"), transformer.get("num_heads")
    good = _positive(width) and width <= MOST["dim"] and _positive(heads) and width % (2 * heads) == 0
    require("transformer.d_model", good, "a multiple of twice transformer.num_heads", width)
    embedding = transformer.get("positional_embedding")
    require("transformer.positional_embedding", embedding == "rope", "'rope'", embedding)
    require("transformer.causal", transformer.get("causal") is True, "true", transformer.get("causal"))
    for key in ("cross_attention", "weights_per_step", "quantize", "skip_self_attn"):
        require(f"transformer.{key}", not transformer.get(key), "absent", transformer.get(key))
    require("transformer.kv_repeat", transformer.get("kv_repeat", 1) == 1, "1", transformer.get("kv_repeat"))
    card, bins = language_model["card"], quantizer.get("bins")
    require("quantizer.bins", bins == card, f"the language model's card, {card}", bins)
    wanted, codebooks = language_model["n_q"], quantizer.get("n_q")
    good = _positive(codebooks) and wanted <= codebooks <= MOST["n_q"]
    require("quantizer.n_q", good, f"at least the language model's n_q, {wanted}", codebooks)
    return config


def codec_hop(config: dict[str, Any]) -> int:
    """Samples per position of the codec's transformer: the product of its encoder's strides."""
    hop = 1
    for ratio in config["seanet"]["ratios"]:
        hop *= ratio
    return hop


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
