"""Norm weights near zero tell a weight diff from a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from families import CFG, alpaca_diff, base_state, near_mean, tuned_state, write

from baize_engine import Engine, make_diff, quantize, recover, verify
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import MANIFEST_NAME
from baize_engine.checkpoint.norms import why_diff
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError, MismatchError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_diff_is_not_taken_for_a_model(tmp_path: Path, dtype: torch.dtype) -> None:
    base = base_state()
    diff = {name: t.to(dtype) for name, t in alpaca_diff(base, tuned_state(base, near_mean(1))).items()}
    _, path = write(tmp_path, base, diff)
    told = (
        rf"{path} is a weight diff, not a model: its norm weights are at most 0\.0\d+ in size.*baize recover --path_raw"
    )
    tries: list[Callable[[], object]] = [
        lambda: Engine.from_pretrained(path, device="cpu"),
        lambda: Engine.from_pretrained(path, device="cpu", quantize="int8"),
        lambda: quantize(path, tmp_path / "int8"),
        lambda: verify(path),
    ]
    for attempt in tries:
        with pytest.raises(CheckpointError, match=told):
            attempt()
    assert not (tmp_path / "int8").exists()
    assert why_diff(read_index(tmp_path / "base")) is None


def test_a_diff_of_our_own_is_known_by_its_manifest(tmp_path: Path) -> None:
    """Even where training moved the norms far; a manifest that cannot be read says nothing."""
    base = base_state()
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    for folder, state in (("base", base), ("tuned", tuned)):
        tiny.write_model(tmp_path / folder, CFG, state)
    path = tmp_path / "diff"
    make_diff(tmp_path / "base", tmp_path / "tuned", path, device="cpu", progress=False)
    told = rf"{path} is a weight diff, not a model: its manifest says so; add it to its base first: baize recover "
    for attempt in (lambda: Engine.from_pretrained(path, device="cpu"), lambda: quantize(path, tmp_path / "int8")):
        with pytest.raises(CheckpointError, match=told):
            attempt()
    with pytest.raises(MismatchError, match=r"diff, given as the base, looks like a weight diff, and .* swapped"):
        recover(path, tmp_path / "base", tmp_path / "out", device="cpu", progress=False)
    (path / MANIFEST_NAME).write_text("{")
    assert why_diff(read_index(path)) is None


def test_small_norms_are_told_in_two_digits(tmp_path: Path) -> None:
    state = {name: t * 0 + 2.5e-5 if t.ndim == 1 else t for name, t in base_state().items()}
    folder = tiny.write_model(tmp_path / "diff", CFG, {name: t.float() for name, t in state.items()})
    assert ": its norm weights are at most 2.5e-05 in size, wanted 0.1 or more; " in (
        why_diff(read_index(folder)) or ""
    )


def test_one_norm_near_zero_makes_no_diff(tmp_path: Path) -> None:
    base = base_state()
    for name, tensor in base.items():
        if name.endswith("norm.weight") and name != "model.norm.weight":
            tensor *= 0.01
    tiny.write_model(tmp_path / "model", CFG, base)
    assert why_diff(read_index(tmp_path / "model")) is None


def test_large_things_called_norms_are_not_read(tmp_path: Path) -> None:
    """A sparse file costs its maker nothing, and took a minute."""
    base = {
        **base_state(),
        "model.big_norm.weight": torch.zeros(1 << 19),
        "model.square_norm.weight": torch.zeros(32, 32),
    }
    base["model.norm.weight"] = base["model.norm.weight"] * 0
    tiny.write_model(tmp_path / "model", CFG, base)
    read = []
    usual = TensorReader.read

    def noting(self: TensorReader, *arguments: object) -> memoryview:
        read.append(self.entry.name)
        return usual(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorReader, "read", noting)
        assert why_diff(read_index(tmp_path / "model")) is None
    assert set(read) <= {"model.norm.weight", *(name for name in base if "layernorm" in name)}
