"""ModelConfig: the shape of a LLaMA that this decoder runs. Settings that it would run wrongly are refused here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.config_file import check_runnable, normalise, read_config
from baize_engine.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model: elements, layers, heads. `rope` holds the parameters of `rope_type` (see model/rope.py)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_type: str = "default"
    rope: Mapping[str, float] = field(default_factory=dict)
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    quantization: str | None = None  # "int8" or "int4": the files hold matrices quantised in this project's scheme

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """The config of the model in `folder`. ConfigError names the file and the setting."""
        try:
            return cls.from_dict(read_config(folder))
        except ConfigError as error:
            raise ConfigError(f"{Path(folder) / 'config.json'}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """From the contents of a config.json as transformers 4 or 5 writes it. ConfigError names the setting."""
        config = normalise(raw)
        check_runnable(config)
        rope = dict(config["rope"])
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=config["rope_theta"],
            rope_type=rope.pop("rope_type"),
            rope=rope,
            max_position_embeddings=config["max_position_embeddings"],
            tie_word_embeddings=config["tie_word_embeddings"],
            quantization=_quantization(config["quantization_config"]),
        )


def quantization_config(kind: str) -> dict[str, Any]:
    """The `quantization_config` of a config.json whose model stores its matrices as `kind` ("int8" or "int4")."""
    from baize_engine.kernels.quantized import GROUP, SCHEME

    group = {"group_size": GROUP} if kind == "int4" else {}
    return {"quant_method": "baize", "scheme": SCHEME, "weights": kind, **group}


def _quantization(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    from baize_engine.kernels.quantized import SCHEME

    kind = found.get("weights")
    if kind in ("int8", "int4") and dict(found) == quantization_config(kind):
        return str(kind)
    raise ConfigError(
        f"config: quantization_config is {dict(found)!r}, this decoder runs unquantised models and those written by "
        f"`baize quantize` in scheme {SCHEME!r}"
    )
