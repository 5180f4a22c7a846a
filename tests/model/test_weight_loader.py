"""Weights that are read in pieces by several workers: joined, quantised, moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from baize_engine.errors import CheckpointError
from baize_engine.kernels import quantized
from baize_engine.model import names, weight_loader
from baize_engine.model import weights as weights_module
from baize_engine.model.config import ModelConfig
from baize_engine.model.quantize import quantize
from baize_engine.model.weights import load_weights, nbytes

KINDS = ("int8", "int4")


def folder(path: Path, dtype: torch.dtype = torch.float16, shards: int = 2, **changes: object) -> Path:
    cfg = tiny.config(torch_dtype=str(dtype).removeprefix("torch."), **changes)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, dtype, scale=0.2), shards=shards)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_quantised_at_load(tmp_path: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces by several workers: each matrix is what quantising it whole gives."""
    monkeypatch.setattr(weight_loader, "PIECE", 700)
    model = folder(tmp_path / "m", dtype)
    config = ModelConfig.from_folder(model)
    published = load_weights(model, config)
    weights = load_weights(model, config, quantize=kind)
    assert set(weights) == set(names.packed(config))
    for name, weight in weights.items():
        whole = torch.cat([published[part] for part in names.parts(name)])
        if name in names.quantized(config):
            wanted = quantized.quantize(whole, kind)
            assert torch.equal(weight.values, wanted.values), name
            assert torch.equal(weight.scales, wanted.scales), name
        else:
            assert torch.equal(weight, whole), name
    held = sum(weight.nbytes for weight in weights.values())
    assert nbytes(backend_index(model), config, quantize=kind) == held


def backend_index(model: Path):
    from baize_engine.checkpoint.index import read_index

    return read_index(model)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    model = tiny.write_model(tmp_path / "m", cfg, tensors)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: .*finite"):
        load_weights(model, ModelConfig.from_folder(model), quantize="int4")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_goes_to_a_gpu_in_pieces(
    tmp_path: Path, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by ranges as any other; here the pieces go to the CPU's memory, test_gpu has a device."""
    quantize(folder(tmp_path / "m"), tmp_path / "q", kind)
    config = ModelConfig.from_folder(tmp_path / "q")
    devices: list[str] = []

    def load(entries: Any, kinds: Any, device: str) -> Any:
        devices.append(device)
        return weight_loader.load(entries, kinds, "cpu")

    monkeypatch.setattr(weight_loader, "PIECE", 700)
    monkeypatch.setattr(weights_module, "load", load)
    monkeypatch.setattr(weights_module, "view", lambda *_: pytest.fail("mapped"))
    read = load_weights(tmp_path / "q", config, dtype, "cuda")
    assert devices == ["cuda"]
    monkeypatch.undo()
    mapped = load_weights(tmp_path / "q", config, dtype)
    assert set(read) == set(mapped)
    for name, weight in read.items():
        for part in ("values", "scales") if name in names.quantized(config) else ("data",):
            one, two = getattr(weight, part), getattr(mapped[name], part)
            assert one.dtype == two.dtype, name
            assert torch.equal(one, two), name
