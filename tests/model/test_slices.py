"""What ranks load: together the whole model, bit for bit, in every precision and from every form of files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import measured_share
import pytest
import shares
import sparse
import torch
from processes import on_two_cores
from shapes import PRESETS
from share_cases import CONFIGS, all_shares, same, write

from baize_engine.checkpoint.index import read_index
from baize_engine.kernels import quantized
from baize_engine.kernels.quantized import Weight
from baize_engine.model import names, weight_loader
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share
from baize_engine.model.weights import load_weights, nbytes

BESIDE = 288 << 20  # bytes of a process beside its share and what importing torch takes, which is more in a CUDA build
NO_PROC = not Path("/proc/self/status").exists()


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_parts_of_floats(
    tmp_path: Path, cfg: dict, stored: str, form: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_loader, "PIECE", 7000)
    model = write(tmp_path / "m", cfg, stored, form)
    config, index = ModelConfig.from_folder(model), read_index(model)
    whole = load_weights(index, config, dtype)
    for share in all_shares():
        weights = load_weights(index, config, dtype, share=share)
        assert {name: weight.shape for name, weight in weights.items()} == names.shapes(config, share)
        parts = shares.parts(whole, config, share)
        for name, weight in weights.items():
            same(weight, parts[name], name)
        assert nbytes(index, config, dtype, share=share) == sum(weight.nbytes for weight in weights.values())


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stored", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_parts_are_quantised_as_the_matrices_they_are(
    tmp_path: Path, cfg: dict, stored: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_loader, "PIECE", 7000)
    model = write(tmp_path / "m", cfg, stored)
    config, index = ModelConfig.from_folder(model), read_index(model)
    whole = load_weights(index, config)
    for share in all_shares():
        weights = load_weights(index, config, quantize=kind, share=share)
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == names.packed(config, share)
        parts = shares.parts(whole, config, share)
        for name, weight in weights.items():
            wanted: Weight = torch.cat([parts[each] for each in names.parts(name)])
            if name in names.quantized(config):
                wanted = quantized.quantize(wanted, kind)
            same(weight, wanted, name)
        assert nbytes(index, config, quantize=kind, share=share) == sum(weight.nbytes for weight in weights.values())


def measured(share: Share, kind: str, *folders: Path) -> tuple[int, int, int]:
    """Of a process that loads a share: what its imports took, its peak memory, and the share's bytes."""
    command = [sys.executable, measured_share.__file__, share.rank, share.ranks, kind, *folders]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, preexec_fn=on_two_cores)
    imported, peak, held = map(int, done.stdout.split())
    return imported, peak, held


@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["", "int8"])
@pytest.mark.parametrize("recovered", [False, True], ids=["loaded", "recovered"])
def test_memory_of_a_rank(tmp_path: Path, kind: str, recovered: bool) -> None:
    """Four layers of 13B and its vocabulary."""
    pair = sparse.write_sparse_pair(tmp_path, replace(PRESETS["13b"], layers=4))
    imported, peak, held = measured(Share(0, 2), kind, *pair[: 2 if recovered else 1])
    assert held < peak <= imported + held + BESIDE


@pytest.mark.slow
@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(("kind", "ranks"), [("", 4), ("int8", 2)])
def test_memory_of_a_rank_of_a_whole_model(tmp_path: Path, kind: str, ranks: int) -> None:
    base, _ = sparse.write_sparse_pair(tmp_path, PRESETS["13b"])
    imported, peak, held = measured(Share(0, ranks), kind, base)
    print(f"{peak >> 20} MiB at most for a share of {held >> 20}")
    assert held < peak <= imported + held + BESIDE
