"""The synthetic pair: shaped as published pairs are on disk, readable by everyone, written in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from assets import REPO
from common import run_child
from make_pair import make_pair
from shapes import PRESETS, preset_of

from baize_engine.checkpoint.index import read_index

SCRIPT = REPO / "benchmarks" / "make_pair.py"


def values(folder: Path, name: str) -> torch.Tensor:
    entry = read_index(folder).entries[name]
    content = bytearray(entry.path.read_bytes()[entry.offset : entry.offset + entry.nbytes])
    return torch.frombuffer(content, dtype=getattr(torch, entry.dtype)).view(entry.shape).float()


def test_the_shape_is_the_published_one(pair: Path) -> None:
    base, diff = read_index(pair / "base"), read_index(pair / "diff")
    assert {entry.dtype for entry in base.entries.values()} == {"float16"}
    assert {entry.dtype for entry in diff.entries.values()} == {"float32"}
    assert base.entries.keys() == diff.entries.keys()
    weights = {name: entry.shape for name, entry in base.entries.items() if not name.endswith("inv_freq")}
    assert weights == PRESETS["tiny"].tensors()
    assert len(base.entries) - len(weights) == PRESETS["tiny"].layers
    assert (len(base.files), len(diff.files)) == (2, 3)
    grown = {name for name in weights if diff.entries[name].shape != weights[name]}
    assert grown == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(diff.entries[name].shape == (1001, 64) for name in grown)


def test_shard_boundaries_differ(pair: Path) -> None:
    first, second = (
        [{e.name for e in index.entries.values() if e.path == path} for path in index.files]
        for index in (read_index(pair / "base"), read_index(pair / "diff"))
    )
    assert all(group not in second for group in first)


def test_values_are_plausible(pair: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    assert values(pair / "base", name).std().item() == pytest.approx(0.02, rel=0.1)
    assert values(pair / "diff", name).std().item() == pytest.approx(0.0005, rel=0.1)
    norm = "model.layers.0.input_layernorm.weight"
    assert values(pair / "base", norm).mean().item() == pytest.approx(1, abs=0.02)
    assert values(pair / "diff", norm).abs().max().item() < 0.01
    assert not torch.equal(values(pair / "base", norm), values(pair / "base", "model.norm.weight"))
    buffer = "model.layers.1.self_attn.rotary_emb.inv_freq"
    wanted = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
    assert torch.equal(values(pair / "base", buffer), wanted.half().float())
    assert not values(pair / "diff", buffer).any()


def test_side_files(pair: Path) -> None:
    base, diff = (json.loads((pair / side / "config.json").read_text()) for side in ("base", "diff"))
    assert (base["torch_dtype"], base["vocab_size"]) == ("float16", 1000)
    assert (diff["torch_dtype"], diff["vocab_size"]) == ("float32", 1001)
    assert "dtype" not in base
    assert preset_of(base) == "tiny"
    assert preset_of({**base, "hidden_size": 65}) == "other"
    assert json.loads((pair / "diff/added_tokens.json").read_text()) == {"<pad>": 1000}
    assert not (pair / "base/added_tokens.json").exists()


def test_seeds(pair: Path, tmp_path: Path) -> None:
    make_pair("tiny", tmp_path / "same")
    make_pair("tiny", tmp_path / "other", seed=7)
    for shard in sorted((pair / "base").glob("*.bin")):
        assert (tmp_path / "same/base" / shard.name).read_bytes() == shard.read_bytes()
        assert (tmp_path / "other/base" / shard.name).read_bytes() != shard.read_bytes()


@pytest.mark.usefixtures("forked")
def test_nothing_is_overwritten(pair: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--preset", "tiny", str(pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "exists already" in done.stderr


def test_a_small_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 75_000_000_000))
    with pytest.raises(ValueError, match=r"78\.1 GB are needed and the disk has 75\.0 GB free"):
        make_pair("13b", tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_memory_does_not_grow_with_a_shard(tmp_path: Path) -> None:
    """A shard of 200 MB is written in what importing torch takes and some blocks (16 MiB each), not in its own size."""
    program = (
        "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"  # on more, more would be needed
        "from pathlib import Path; sys.path.insert(0, sys.argv[1]); import make_pair as m, torch, resource\n"
        "side = m.Side(1, 1, 0.0, m.Values(0, 0.0005, torch.float32))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "m.write_shard(Path(sys.argv[2]), {name: (25000, 1000) for name in 'ab'}, side)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # before the end, when torch's CUDA build takes more
    )
    shard = tmp_path / "shard.bin"
    done = run_child([sys.executable, "-c", program, str(REPO / "benchmarks"), str(shard)])
    assert done.code == 0, done.output
    assert shard.stat().st_size > 200_000_000
    imported, peak = (1024 * int(size) for size in done.output.split())
    assert peak - imported < 80 << 20


def test_parameter_counts_are_the_published_ones() -> None:
    for preset, published in (("7b", 6_738_415_616), ("13b", 13_015_864_320)):
        shape = PRESETS[preset]
        assert shape.parameters == published
        assert shape.parameters == sum(torch.Size(dims).numel() for dims in shape.tensors().values())
