"""What the decoder accepts as a model, in which spelling, and what it refuses by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from baize_engine.errors import BaizeError, ConfigError
from baize_engine.model.config import ModelConfig


def test_the_spelling_of_2023_and_of_transformers_5() -> None:
    old = ModelConfig.from_dict(tiny.config(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=5000.0))
    raw = tiny.config(dtype="float16", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    del raw["torch_dtype"]
    assert ModelConfig.from_dict(raw) == old
    assert (old.rope_type, dict(old.rope), old.rope_theta) == ("linear", {"factor": 2.0}, 5000.0)


def test_transformers_defaults_where_the_file_is_silent() -> None:
    config = ModelConfig.from_dict({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.max_position_embeddings) == (
        4,
        16,
        1e4,
        2048,
    )


@pytest.mark.parametrize(
    "unused",
    [
        {"pad_token_id": -1},
        {"pad_token_id": [0, 1], "pretraining_tp": "two", "bos_token_id": {"a": None}, "eos_token_id": "</s>"},
        {"pad_token_id": None, "pretraining_tp": 1, "rope_scaling": None, "bos_token_id": None, "eos_token_id": [2, 7]},
        {"model_max_length": 10**30, "x": float("inf"), "y": float("nan"), "dtype": 7, "torch_dtype": None},
        {"architectures": None},
        {"architectures": []},
        {"architectures": ["LLaMAForCausalLM"]},
    ],
)
def test_what_is_not_used_is_not_looked_at(tmp_path: Path, unused: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(**unused)))
    assert ModelConfig.from_folder(tmp_path) == ModelConfig.from_dict(tiny.config())


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


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": ' + "9" * 5000 + "}", "\ufeff"])
def test_broken_files_are_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BaizeError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_a_byte_order_mark_is_taken_and_utf_16_is_not(tmp_path: Path) -> None:
    text = json.dumps(tiny.config())
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert ModelConfig.from_folder(tmp_path) == ModelConfig.from_dict(tiny.config())
    (tmp_path / "config.json").write_text(text, encoding="utf-16")
    with pytest.raises(BaizeError, match=r"config\.json: not JSON \('utf-8' codec"):
        ModelConfig.from_folder(tmp_path)


def test_of_a_key_that_stands_twice_the_last_counts(tmp_path: Path) -> None:
    """As in transformers; indexes and headers, which say where bytes lie, have one meaning or none."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.config())[:-1] + ', "rms_norm_eps": 1e-5}')
    assert ModelConfig.from_folder(tmp_path).rms_norm_eps == 1e-5
