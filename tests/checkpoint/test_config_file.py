"""config.json: its spellings, what is read of it, and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from baize_engine import recover
from baize_engine.errors import BaizeError
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
