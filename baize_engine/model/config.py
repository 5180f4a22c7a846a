"""ModelConfig: the shape of a LLaMA that this decoder runs. Settings that it would run wrongly are refused here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.config_file import check_runnable, normalise, read_config
from baize_engine.errors import ConfigError

# The `quantization_config` of int4 models as `baize quantize` wrote it before the scheme of today (model/old_int4.py).
OLD_INT4: dict[str, Any] = {"quant_method": "baize", "scheme": "baize-1", "weights": "int4", "group_size": 64}


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
    quantization: str | None = None  # "int8" or "int4": the files hold matrices quantised in this project's `scheme`
    scheme: str | None = None

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
            **_quantization(config["quantization_config"]),
        )

    @property
    def held(self) -> str | None:
        """The kind of a quantised model's matrices in memory: int4 of an old scheme is held as int8."""
        old = self.quantization == "int4" and self.scheme == OLD_INT4["scheme"]
        return "int8" if old else self.quantization


def quantization_config(kind: str) -> dict[str, Any]:
    """The `quantization_config` of a config.json whose model stores its matrices as `kind` ("int8" or "int4")."""
    from baize_engine.kernels.quantized import BLOCK, SCHEMES

    group = {"group_size": BLOCK} if kind == "int4" else {}
    return {"quant_method": "baize", "scheme": SCHEMES[kind], "weights": kind, **group}


def _quantization(found: Mapping[str, Any] | None) -> dict[str, str]:
    if found is None:
        return {}
    from baize_engine.kernels.quantized import SCHEMES

    for known in (*(quantization_config(kind) for kind in SCHEMES), OLD_INT4):
        if dict(found) == known:
            return {"quantization": known["weights"], "scheme": known["scheme"]}
    schemes = ", ".join(f"{scheme!r} ({kind})" for kind, scheme in SCHEMES.items())
    raise ConfigError(
        f"config: quantization_config is {dict(found)!r}, this decoder runs unquantised models and those written by "
        f"`baize quantize` in the schemes {schemes}"
    )
