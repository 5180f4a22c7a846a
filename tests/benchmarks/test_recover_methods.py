"""The baselines of recovery: they move the bytes that recover moves."""

from __future__ import annotations

from pathlib import Path

import bench_recover
import pytest
import recover_methods

from baize_engine import recover
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import CheckpointError


def weights(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob(pattern)}


def test_the_copies_write_what_recover_writes(pair: Path, tmp_path: Path) -> None:
    base, diff = pair / "base", pair / "diff"
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    recover_methods.copy(base, diff, tmp_path / "copy")
    recover_methods.plain_copy(base, diff, tmp_path / "plain")
    size = sum(weights(tmp_path / "tuned", "*.safetensors").values())
    rows = 2 * 64 * 2  # bytes of the two rows that only the diff has
    assert sum(weights(tmp_path / "copy", "*.safetensors").values()) == pytest.approx(size - rows, abs=64)
    assert sum(weights(tmp_path / "plain", "data").values()) == pytest.approx(size, rel=0.02)
    copied = next((tmp_path / "copy").glob("*.safetensors")).read_bytes()
    assert copied.count(0) < len(copied) / 50  # random bytes: no disk stores them as nothing


def test_a_plain_copy_that_fails_is_no_floor(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise CheckpointError("broken")

    monkeypatch.setattr(recover_methods.InputFile, "read", broken)
    with pytest.raises(CheckpointError, match="broken"):
        recover_methods.plain_copy(pair / "base", pair / "diff", tmp_path / "plain")


def test_the_reference_method_is_the_same_sum(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recover_methods.reference(pair / "base", pair / "diff", tmp_path / "tuned")
    entries = read_index(tmp_path / "tuned").entries
    assert {entry.dtype for entry in entries.values()} == {"float32"}
    assert entries["lm_head.weight"].shape[0] == 1001
    bench_recover.check_result(pair / "base", pair / "diff", tmp_path / "tuned", with_mean_row=False)
