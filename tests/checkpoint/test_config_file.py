"""config.json: its spellings, what is read of it, and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from baize_engine import recover
from baize_engine.checkpoint.config_file import check_runnable, is_usable, normalise, read_normalised
from baize_engine.errors import BaizeError, ConfigError
from baize_engine.model.config import ModelConfig


def test_the_spelling_of_2023_and_of_transformers_5() -> None:
    old = ModelConfig.from_dict(tiny.config(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=5000.0))
    raw = tiny.config(dtype="float16", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    del raw["torch_dtype"]
    assert ModelConfig.from_dict(raw) == old
    assert (old.rope_type, dict(old.rope), old.rope_theta) == ("linear", {"factor": 2.0}, 5000.0)


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


def test_old_and_new_config_spellings_agree(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    path = diff / "config.json"
    config = json.loads(path.read_text())
    del config["torch_dtype"]
    config |= {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    path.write_text(json.dumps(config))
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    written = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert written["dtype"] == "float16"
    assert "torch_dtype" not in written


def test_keys_in_use_get_one_spelling_and_the_others_are_dropped() -> None:
    config = normalise({"hidden_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1, "x": 1, "architectures": []})
    assert "x" not in config
    assert (config["num_key_value_heads"], config["head_dim"], config["architectures"]) == (4, 16, None)
    assert type(config["rms_norm_eps"]) is float
    assert (config["rope_theta"], config["rope"]) == (1e4, {"rope_type": "default"})
    both = {"rope_type": "linear", "type": "dynamic", "factor": 2.0, "beta": None, "rope_theta": 5e3}
    config = normalise({"rope_parameters": both, "rope_scaling": {"type": "yarn"}, "rope_theta": 7.0})
    assert (config["rope_theta"], config["rope"]) == (5e3, {"rope_type": "linear", "factor": 2.0})


@pytest.mark.parametrize(
    ("value", "usable"),
    [(1, True), (-2.5, True), (2**63 - 1, True), (2**63, False), (float("inf"), False), (float("nan"), False),
     (True, False), ("1", False), (None, False)],
)  # fmt: skip
def test_usable_numbers_have_64_bits(value: object, usable: bool) -> None:
    assert is_usable(value) is usable


def test_errors_name_the_key_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config: vocab_size is '9', wanted an integer$"):
        normalise({"vocab_size": "9"})
    (tmp_path / "config.json").write_text('{"vocab_size": -1}')
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config\.json: config: vocab_size is -1, wanted a positive"):
        read_normalised(tmp_path)


def test_what_the_file_does_not_say_is_no_reason_to_refuse_it() -> None:
    check_runnable(normalise({}))  # neither model_type nor architectures
    with pytest.raises(ConfigError, match="hidden_act is 'gelu', this decoder runs 'silu' only"):
        check_runnable(normalise({"hidden_act": "gelu"}))
