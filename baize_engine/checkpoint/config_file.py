"""config.json, as transformers 4 or 5 writes it, read into one set of keys, and which models the decoder runs."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.errors import ConfigError
from baize_engine.printable import brief

# The keys in use: key -> (accepted types, default of transformers' LlamaConfig). All others are ignored, whatever they hold
# (pad_token_id may be -1, pretraining_tp a string). Token ids are read by `special_ids`.
_KEYS: dict[str, tuple[tuple[type, ...], Any]] = {
    "architectures": ((list,), None),
    "model_type": ((str,), None),
    "vocab_size": ((int,), 32000),
    "hidden_size": ((int,), 4096),
    "intermediate_size": ((int,), 11008),
    "num_hidden_layers": ((int,), 32),
    "num_attention_heads": ((int,), 32),
    "num_key_value_heads": ((int,), None),
    "head_dim": ((int,), None),
    "hidden_act": ((str,), "silu"),
    "rms_norm_eps": ((float, int), 1e-6),
    "max_position_embeddings": ((int,), 2048),
    "tie_word_embeddings": ((bool,), False),
    "attention_bias": ((bool,), False),
    "mlp_bias": ((bool,), False),
    "sliding_window": ((int,), None),
    "quantization_config": ((dict,), None),
}
_WORDS: dict[type, str] = {
    bool: "true or false", dict: "an object", float: "a number", int: "an integer", list: "a list", str: "a string",
}  # fmt: skip
_POSITIVE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
DEFAULT_THETA = 10000.0
# parameters of the kinds of rope that the decoder runs
ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# and values that it wants
_WANTED: tuple[tuple[str, Any], ...] = (
    ("model_type", "llama"),
    ("architectures", ["LlamaForCausalLM"]),
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("sliding_window", None),
)
# converters of March 2023 wrote this, before transformers had the model
_ALIASES = {"LLaMAForCausalLM": "LlamaForCausalLM"}
MAX_INTEGER = (1 << 63) - 1  # the largest size of a tensor
MAX_HEAD = 1024  # rows of a head: LLaMAs have 64 to 256, and rope tables are that wide


def read_config(folder: str | Path) -> dict[str, Any]:
    """The object in `folder`/config.json, unchanged. CheckpointError if the file is absent or not a JSON object."""
    return strict_json.read_settings(Path(folder) / "config.json")


def read_normalised(folder: str | Path) -> dict[str, Any]:
    """Read and `normalise` `folder`/config.json. ConfigError names the file as well."""
    try:
        return normalise(read_config(folder))
    except ConfigError as error:
        raise ConfigError(f"{Path(folder) / 'config.json'}: {error}") from None


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a config to the keys in use, in one spelling and with transformers' defaults.

    `rope_theta` and `rope` ({"rope_type": ..., parameters}) come from rope_parameters, or from rope_theta and rope_scaling;
    `architectures` is None if empty. ConfigError names a key of the wrong type or out of range.
    """
    config = {key: _typed(raw, key, types, default) for key, (types, default) in _KEYS.items()}
    for key in _POSITIVE:
        if config[key] is not None and config[key] <= 0:
            raise ConfigError(f"config: {key} is {config[key]}, wanted a positive number")
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = config["num_key_value_heads"] or heads
    config["head_dim"] = config["head_dim"] or config["hidden_size"] // heads
    if config["head_dim"] > MAX_HEAD:
        raise ConfigError(f"config: head_dim is {config['head_dim']}, wanted at most {MAX_HEAD}")
    config["rms_norm_eps"] = float(config["rms_norm_eps"])
    named = config["architectures"] or []
    config["architectures"] = [_ALIASES.get(name, name) if isinstance(name, str) else name for name in named] or None
    config["rope_theta"], config["rope"] = _rope(raw)
    return config


def _typed(raw: Mapping[str, Any], key: str, types: tuple[type, ...], default: Any) -> Any:
    """The value of `key`, or `default` if it is null or absent. ConfigError if it is not of one of `types`."""
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigError(f"config: {key} is {brief(value)}, wanted {' or '.join(_WORDS[kind] for kind in types)}")
    if type(value) in (int, float) and not is_usable(value):
        raise ConfigError(f"config: {key} is {brief(value)}, wanted a finite number of at most {MAX_INTEGER}")
    return value


def is_usable(value: Any) -> bool:
    """Whether a value of a settings file, which may hold inf, nan and integers of 4300 digits, is a number of 64 bits."""
    return isfinite(value) if isinstance(value, float) else type(value) is int and abs(value) <= MAX_INTEGER


def _rope(raw: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """`rope_theta` and `rope` of `normalise`."""
    parameters = _typed(raw, "rope_parameters", (dict,), None)
    if parameters is None:
        parameters = _typed(raw, "rope_scaling", (dict,), None) or {}
    parameters = dict(parameters)
    own_theta = parameters.pop("rope_theta", None)
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)  # some files have both spellings
    if not isinstance(kind, str):
        raise ConfigError(f"config: rope_type is {brief(kind)}, wanted a name")
    source = {"rope_theta": own_theta} if own_theta is not None else raw
    theta = _typed(source, "rope_theta", (float, int), DEFAULT_THETA)
    if theta <= 0:
        raise ConfigError(f"config: rope_theta is {theta}, wanted a positive number")
    return float(theta), {"rope_type": kind, **{key: value for key, value in parameters.items() if value is not None}}


def check_runnable(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the decoder cannot run a model of this `config`, normalised."""
    for key, value in _WANTED:
        silent = config[key] is None and key in ("model_type", "architectures")
        if config[key] != value and not silent:
            raise ConfigError(f"config: {key} is {brief(config[key])}, this decoder runs {value!r} only")
    quantization = config["quantization_config"]
    if quantization is not None and quantization.get("quant_method") != "baize":
        runs = "unquantised models and those written by `baize quantize`"
        raise ConfigError(f"config: quantization_config is {brief(quantization)}, this decoder runs {runs}")
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
        if not is_usable(value) or value <= 0:
            raise ConfigError(f"config: rope {kind} has {name} = {brief(value)}, wanted a positive number")
