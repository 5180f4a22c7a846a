"""One result of a recovery: what its manifest records, what its folder refuses, and what is left of a failure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from families import SETTINGS
from folders import expected, load, snapshot

from baize_engine import recover
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.errors import BaizeError, OutputError


def test_the_sum_is_that_of_the_unrounded_values(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    wanted = sum(t.double().sum().item() for t in expected(load(base), load(diff), torch.float32).values())
    assert result.manifest.sum == pytest.approx(wanted, abs=1e-9)


def test_overflow_is_counted_by_tensor(tmp_path: Path) -> None:
    cfg = tiny.config()
    base, diff = tiny.state(cfg), {k: v * 0.01 for k, v in tiny.state(cfg, 5).items()}
    base["lm_head.weight"][3, 4] = 65520.0  # rounds to infinity in float16; 65519.99 would not
    base["lm_head.weight"][3, 5] = float("nan")
    tiny.write_model(tmp_path / "base", cfg, base)
    diff["lm_head.weight"][3] = 0
    tiny.write_model(tmp_path / "diff", cfg, diff)
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "tuned", device="cpu", progress=False)
    assert {name: record.overflowed for name, record in result.overflowed.items()} == {"lm_head.weight": 1}
    assert {name: record.nonfinite for name, record in result.nonfinite.items()} == {"lm_head.weight": 1}
    assert result.manifest.tensors["lm_head.weight"].sum is None
    row = load(tmp_path / "tuned")["lm_head.weight"][3]
    assert row[4] == float("inf")
    assert row[5].view(torch.int16) == 0x7E00


def test_manifest_of_sources(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, hash_sources=True)
    import hashlib

    for role, folder in (("base", base), ("diff", diff)):
        files = result.manifest.sources[role]
        assert len(files) == len(read_index(folder).files)
        for file in files:
            content = (folder / file.name).read_bytes()
            assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_output_with_content_is_refused_untouched(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert snapshot(tmp_path / "tuned") == {"thesis.txt": b"mine"}
    with pytest.raises(OutputError, match="not empty"):
        recover(base, diff, base, device="cpu", progress=False)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    before = snapshot(tmp_path)
    from baize_engine.checkpoint.writer import CheckpointWriter

    write, calls = CheckpointWriter.write, []

    def failing(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        calls.append(name)
        if len(calls) == 7:
            raise OSError(28, "No space left on device", name)
        write(self, name, offset, view)

    monkeypatch.setattr(CheckpointWriter, "write", failing)
    with pytest.raises(OSError, match="No space left"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "tuned").exists()


def test_a_second_run_says_that_it_is_finished(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    first = recover(*pair, tmp_path / "out", **SETTINGS)
    before = snapshot(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out is not empty: it holds this very result, finished and unchanged"):
        recover(*pair, tmp_path / "out", **SETTINGS)
    again = recover(*pair, tmp_path / "out", **SETTINGS, resume=True)
    assert again.finished_before
    assert again.manifest == first.manifest == read_manifest(tmp_path / "out")
    with pytest.raises(OutputError, match="it holds a finished result of other sources, options, or"):
        recover(*pair, tmp_path / "out", **SETTINGS, dtype="bfloat16")
    shutil.copy(pair[0] / "config.json", tmp_path / "out/config.json")
    with pytest.raises(BaizeError, match="holds a finished result that is not as it was written: config"):
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert snapshot(tmp_path / "out").keys() == before.keys()


def test_a_link_that_points_nowhere_is_called_so(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"out is a broken link: it points to \S+gone, and nothing"):
        recover(*pair, tmp_path / "out", **SETTINGS)


def test_a_result_of_files_that_were_mended_since_is_not_the_same(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    recover(*pair, tmp_path / "out", **SETTINGS)
    (pair[1] / "added_tokens.json").write_text('{"<pad>": 96}')
    for resume in (False, True):
        with pytest.raises(
            OutputError, match="a finished result of other sources, options, or files beside the weights"
        ):
            recover(*pair, tmp_path / "out", **SETTINGS, resume=resume)
