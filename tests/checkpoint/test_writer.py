"""The writer: layouts that safetensors itself reads back, aligned data, and nothing left behind on failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from baize_engine.checkpoint.buffers import PAGE
from baize_engine.checkpoint.writer import INDEX_NAME, CheckpointWriter, TensorSpec, lay_out
from baize_engine.errors import OutputError

SPECS = [
    TensorSpec("norm", "float16", (10,)),
    TensorSpec("big", "float16", (64, 64)),
    TensorSpec("empty", "float32", (0, 4)),
    TensorSpec("other", "bfloat16", (3, 5)),
]


def fill(writer: CheckpointWriter, specs: list[TensorSpec]) -> dict[str, bytes]:
    written = {}
    for spec in specs:
        content = os.urandom(spec.nbytes)
        half = spec.nbytes // 2
        writer.write(spec.name, half, memoryview(content)[half:])
        writer.write(spec.name, 0, memoryview(content)[:half])
        written[spec.name] = content
    return written


def stored(folder: Path, file: str, name: str) -> bytes:
    with safe_open(folder / file, framework="pt") as handle:
        tensor = handle.get_tensor(name)
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_one_shard_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with CheckpointWriter(out, lay_out(SPECS)) as writer:
        written = fill(writer, SPECS)
        writer.finish({"config.json": b"{}"})
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert {name: stored(out, "model.safetensors", name) for name in written} == written


def test_several_shards_with_index(tmp_path: Path) -> None:
    shards = lay_out(SPECS, max_shard_bytes=100)
    assert [sorted(s.offsets) for s in shards] == [["norm"], ["big"], ["empty", "other"]]
    with CheckpointWriter(tmp_path / "out", shards) as writer:
        written = fill(writer, SPECS)
        writer.finish({})
    import json

    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in SPECS)
    assert {name: stored(tmp_path / "out", index["weight_map"][name], name) for name in written} == written


def test_whole_page_tensors_lie_on_pages() -> None:
    (shard,) = lay_out(SPECS)
    assert len(shard.header) % PAGE == 0
    assert shard.offsets["big"] % PAGE == 0  # although the odd-sized "norm" was named before it


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        CheckpointWriter(tmp_path / "x" / "out", lay_out(SPECS)) as writer,
    ):
        fill(writer, SPECS)
        assert (tmp_path / "x" / "out" / "model.safetensors.partial").exists()
        raise RuntimeError("on purpose")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_finish_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"no/such/folder\.json\.partial cannot be written"),
        CheckpointWriter(tmp_path / "out", lay_out(SPECS)) as writer,
    ):
        writer.finish({"no/such/folder.json": b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_writer_leaves_nothing(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", lay_out(SPECS)) as writer:
        fill(writer, SPECS)
    assert list(tmp_path.iterdir()) == []
