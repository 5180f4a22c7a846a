"""Weights beyond the range of the type that they are loaded in: counted and told, however they are loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from baize_engine import Engine, quantize
from baize_engine.errors import BaizeWarning
from baize_engine.model.narrowing import overflowed

NAMES = ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]


def folder(root: Path, dtype: torch.dtype, values: list[float]) -> Path:
    """A model of `dtype` whose tensors NAMES begin with the values."""
    state = tiny.state(tiny.config(), 0, dtype)
    for name in NAMES:
        state[name].view(-1)[: len(values)] = torch.tensor(values).to(dtype)
    return tiny.write_model(root, tiny.config(torch_dtype=str(dtype).removeprefix("torch.")), state)


def told(call: Callable[[], Engine]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call().close()
    lines = [str(each.message) for each in caught if each.category is BaizeWarning]
    return [line for line in lines if "infinite" in line]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_become_infinite_are_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    made = folder(tmp_path / "m", dtype, [1e6, -1e5, 65504.0 if dtype == torch.float32 else 1.0, 1e-30])
    load = lambda kind, **more: told(lambda: Engine.from_pretrained(made, device="cpu", dtype=kind, **more))  # noqa: E731
    (line,) = load("float16")
    assert line == (
        "model.embed_tokens.weight and 2 other tensor(s): 6 finite value(s) left the range of float16 and became "
        "infinite: wanted dtype bfloat16 or float32"
    )
    assert load("bfloat16") == load("float32") == load("auto") == []
    (line,) = load("float16", quantize="int8")  # embedding and norms; the matrix is made from the file's own values
    assert line.startswith("model.embed_tokens.weight and 1 other tensor(s): 4 finite value(s)")
    quantize(made, tmp_path / "q", "int8")
    (line,) = told(lambda: Engine.from_pretrained(tmp_path / "q", device="cpu", dtype="float16"))
    assert line.startswith("model.embed_tokens.weight and 1 other tensor(s): 4 finite value(s)")


def test_a_recovery_into_memory_counts_them_too(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    assert told(lambda: Engine.from_diff(base, diff, device="cpu")) == []
    config = tiny.config(vocab_size=97, torch_dtype="float32")
    state = tiny.state(config, 1, torch.float32, scale=0.003)
    state = {name: value - 1 if name.endswith("norm.weight") else value for name, value in state.items()}
    state["lm_head.weight"][3, :5] = 1e6
    tiny.write_model(tmp_path / "large", config, state)
    (line,) = told(lambda: Engine.from_diff(base, tmp_path / "large", device="cpu"))
    assert line.startswith("lm_head.weight: 5 finite value(s) left the range of float16 and became infinite")
    assert told(lambda: Engine.from_diff(base, tmp_path / "large", device="cpu", dtype="bfloat16")) == []


def test_what_is_infinite_or_no_number_already_is_not_counted() -> None:
    read = torch.tensor([float("inf"), float("nan"), -float("inf"), 7e4, -7e4, 65519.0])
    assert overflowed(read, read.half()) == 2
    assert overflowed(read[:3], read[:3].half()) == 0
    assert overflowed(read, read.bfloat16()) == 0
    assert overflowed(torch.tensor([3.4e38]), torch.tensor([3.4e38]).bfloat16()) == 1
    assert overflowed(read.half(), read.half().float()) == 0
    assert overflowed(read[:0], read[:0].half()) == 0
