"""Which models the decoder runs, by their config. Used by the decoder, and by recovery before its long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baize_engine.checkpoint.config_file import is_usable
from baize_engine.errors import ConfigError
from baize_engine.printable import brief

ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_WANTED: tuple[tuple[str, Any], ...] = (
    ("model_type", "llama"),
    ("architectures", ["LlamaForCausalLM"]),
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("sliding_window", None),
)


def check_runnable(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the decoder cannot run a model of this `config`, normalised by `config_file.normalise`."""
    for key, value in _WANTED:
        silent = config[key] is None and key in ("model_type", "architectures")
        if config[key] != value and not silent:
            raise ConfigError(f"config: {key} is {brief(config[key])}, this decoder runs {value!r} only")
    quantization = config["quantization_config"]
    if quantization is not None and quantization.get("quant_method") != "baize":
        raise ConfigError(
            f"config: quantization_config is {brief(quantization)}, this decoder runs unquantised models and those written by "
            "`baize quantize`"
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        raise ConfigError(f"config: {heads} heads do not divide among {kv_heads} key/value heads")
    if config["head_dim"] % 2:
        raise ConfigError(f"config: head_dim is {config['head_dim']}, wanted an even number for rotary embeddings")
    kind = config["rope"]["rope_type"]
    if kind not in ROPE_PARAMETERS:
        raise ConfigError(f"config: rope_type is {brief(kind)}, supported are {', '.join(ROPE_PARAMETERS)}")
    for name in ROPE_PARAMETERS[kind]:
        value = config["rope"].get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_usable(value) or value <= 0:
            raise ConfigError(f"config: rope {kind} has {name} = {brief(value)}, wanted a positive number")
