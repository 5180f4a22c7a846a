"""make_diff is the inverse of recover, streaming through the same code."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from folders import load, same_bits

from baize_engine import make_diff, recover
from baize_engine.errors import MismatchError


def test_there_and_back(tmp_path: Path) -> None:
    cfg = tiny.config()
    base = tiny.state(cfg, 1, torch.float16)
    tuned_cfg = {**cfg, "vocab_size": 98}
    tuned = tiny.state(tuned_cfg, 2, torch.float16)
    tiny.write_model(tmp_path / "base", cfg, base, "bin", 2)
    tiny.write_model(tmp_path / "tuned", tuned_cfg, tuned)
    made = make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", device="cpu", progress=False)
    assert made.manifest.operation == "make_diff"
    diff = load(tmp_path / "diff")
    wanted = {
        name: tensor.float() - base[name].float() for name, tensor in tuned.items() if tensor.shape == base[name].shape
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        mean = base[name].double().mean(dim=0, keepdim=True).float()
        wanted[name] = tuned[name].float() - torch.cat([base[name].float(), mean.expand(2, -1)])
    same_bits(diff, wanted)
    recover(tmp_path / "base", tmp_path / "diff", tmp_path / "again", device="cpu", progress=False)
    same_bits(load(tmp_path / "again"), tuned)


def test_a_diff_in_place_of_the_tuned_model_is_refused(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    with pytest.raises(MismatchError, match="looks like a weight diff already"):
        make_diff(base, diff, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()
