"""The writer: layouts that safetensors itself reads back, aligned data, and nothing left behind on failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from baize_engine.checkpoint.buffers import PAGE, aligned_buffer
from baize_engine.checkpoint.output_file import OutputFile
from baize_engine.checkpoint.output_folder import check_output
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


@pytest.mark.parametrize(
    ("entry", "message"), [("notes.txt", "is not empty"), ("model.safetensors.partial", "unfinished")]
)
def test_a_folder_with_content_is_refused_untouched(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / entry).write_text("mine")
    with pytest.raises(OutputError, match=message), CheckpointWriter(tmp_path, lay_out(SPECS)):
        pass
    assert (tmp_path / entry).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(tmp_path / "out", 1)


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"1000000000\.00 GB are needed"):
        check_output(tmp_path / "out", 10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("offset", "length"), [(0, 3 * PAGE), (PAGE, 2 * PAGE + 17), (5, PAGE), (2 * PAGE, 9)])
def test_direct_and_buffered_writes_meet(tmp_path: Path, offset: int, length: int) -> None:
    total = 6 * PAGE
    file = OutputFile(tmp_path / "f", total)
    view = aligned_buffer(length)
    view[:] = os.urandom(length)
    file.write_at(offset, view)
    file.sync()
    file.close()
    content = (tmp_path / "f").read_bytes()
    assert content == bytes(offset) + bytes(view) + bytes(total - offset - length)
