"""What the decoder accepts as a model, and what it refuses by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from baize_engine.errors import ConfigError
from baize_engine.model.config import ModelConfig


def test_transformers_defaults_where_the_file_is_silent() -> None:
    config = ModelConfig.from_dict({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.max_position_embeddings) == (
        4,
        16,
        1e4,
        2048,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "factor = None"),
        ({"num_key_value_heads": 3}, "4 heads do not divide among 3"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"head_dim": 1 << 40}, "head_dim is 1099511627776, wanted at most 1024"),
        ({"rope_theta": 0}, "rope_theta is 0, wanted a positive number"),
        ({"rope_parameters": {"rope_theta": -1.0}}, r"rope_theta is -1\.0"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 10**400}, "hidden_size is 1000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, wanted a finite number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, wanted a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor = inf"),
        ({"vocab_size": True}, "vocab_size is True"),
    ],
)
def test_what_it_would_run_wrongly_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(**changes)))
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
