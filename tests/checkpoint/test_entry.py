"""Where a tensor's elements lie: ranges of tensors that are joined of several files, and of heads that are reordered."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
import tiny_meta
import torch

from baize_engine.checkpoint.entry import (
    MAX_NAME,
    MAX_TENSORS,
    JoinedEntry,
    TensorEntry,
    check_count,
    check_name,
    columns_of,
    rows_of,
)
from baize_engine.checkpoint.meta_layout import read_meta
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError

CONFIG = tiny.config(hidden_size=64, intermediate_size=160, num_attention_heads=8, num_key_value_heads=8)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_any_range_of_any_tensor(tmp_path: Path, shards: int) -> None:
    files = tiny_meta.random_shards(CONFIG, shards)
    converted = tiny_meta.convert(CONFIG, files)
    index, _ = read_meta(tiny_meta.write_meta(tmp_path, CONFIG, files))
    assert index.entries.keys() == converted.keys()
    rng = random.Random(0)
    for name, tensor in converted.items():
        entry = index.entries[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), "float16")
        content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        buffer = memoryview(bytearray(entry.nbytes))
        with TensorReader(entry) as reader:
            for _ in range(20):
                begin = rng.randrange(entry.numel)
                end = rng.randrange(begin, entry.numel) + 1
                assert reader.read(begin, end, buffer) == content[begin * 2 : end * 2], (name, begin, end)


def test_a_head_is_read_without_waste_in_pieces_of_whole_heads(tmp_path: Path) -> None:
    """What is read is what is wanted, wherever pieces keep to the grain."""
    index, _ = read_meta(tiny_meta.write_meta(tmp_path, CONFIG, tiny_meta.random_shards(CONFIG, 2)))
    entry = index.entries["model.layers.0.self_attn.q_proj.weight"]
    assert entry.grain == 8 * 64
    for begin in range(0, entry.numel, entry.grain):
        for run in entry.runs(begin, begin + entry.grain):
            assert all(place is not None for place, _ in run.places)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_slices_of_any_tensor_read_nothing_else(tmp_path: Path, shards: int, count: int) -> None:
    """Rows, whole heads of them, and columns of matrices in one file or several."""
    files = tiny_meta.random_shards(CONFIG, shards)
    index, _ = read_meta(tiny_meta.write_meta(tmp_path, CONFIG, files))
    rng = random.Random(0)
    for name, tensor in tiny_meta.convert(CONFIG, files).items():
        entry = index.entries[name]
        for axis in (0, 1) if name.endswith(("o_proj.weight", "down_proj.weight")) else (0,):
            width = tensor.shape[axis] // count
            first = rng.randrange(count) * width
            slice_ = (columns_of if axis else rows_of)(entry, first, first + width)
            content = tensor.narrow(axis, first, width).contiguous().view(torch.uint8).numpy().tobytes()
            assert (slice_.nbytes, slice_.path, slice_.dtype) == (len(content), entry.path, "float16")
            buffer = memoryview(bytearray(slice_.nbytes))
            with TensorReader(slice_) as reader:
                assert reader.read(0, slice_.numel, buffer) == content, (name, axis)
                for _ in range(10):
                    begin = rng.randrange(slice_.numel)
                    end = rng.randrange(begin, slice_.numel) + 1
                    assert reader.read(begin, end, buffer) == content[begin * 2 : end * 2], (name, axis, begin, end)
            for begin in range(0, slice_.numel, slice_.grain * 7):
                for run in slice_.runs(begin, min(begin + slice_.grain * 7, slice_.numel)):
                    assert all(place is not None for place, _ in run.places)


@pytest.mark.parametrize("axis", [0, 1])
def test_ranges_of_joined_tensors_are_those_of_the_whole(axis: int) -> None:
    """Arithmetic only: where each element of any range lies in its part."""
    whole = torch.arange(2 * 3 * 5 * 4).view((2 * 15, 4) if axis == 0 else (15, 2 * 4))
    stored = [part.contiguous().flatten() for part in whole.chunk(2, axis)]
    parts = tuple(TensorEntry("w", "float32", (15, 4), Path(f"part{n}"), 8 * n) for n in range(2))
    joined = JoinedEntry("w", "float32", tuple(whole.shape), parts, axis)
    assert (joined.numel, joined.nbytes, joined.grain, joined.path) == (120, 480, 1, Path("part0"))
    for begin in range(0, 120, 7):
        for end in range(begin + 1, 121, 5):
            found = torch.full((end - begin,), -1)
            for run in joined.runs(begin, end):
                at = run.first
                for place, length in run.places:
                    if place is not None:
                        assert bool((found[place : place + length] == -1).all())  # each element once
                        found[place : place + length] = stored[run.part][at : at + length]
                    at += length
            assert found.tolist() == whole.flatten()[begin:end].tolist()


def test_float64_is_narrowed_and_the_rest_is_as_stored() -> None:
    wide = TensorEntry.stored("w", "float64", (3, 5), Path("f"), 64)
    assert (wide.dtype, wide.stored_dtype, wide.nbytes, wide.stored_nbytes) == ("float32", "float64", 60, 120)
    plain = TensorEntry.stored("w", "float16", (3, 5), Path("f"), 64)
    assert (plain.narrowed, plain.stored_dtype, plain.nbytes, plain.stored_nbytes) == (False, "float16", 30, 30)
    assert plain.parts == (plain,)
    assert [(run.part, run.first, run.places) for run in plain.runs(4, 9)] == [(0, 4, [(0, 5)])]


def test_names_and_counts_of_strangers_are_bounded() -> None:
    path = Path("model.bin")
    check_name(path, "é" * MAX_NAME)
    for name in ("", "a" * (MAX_NAME + 1), "a\nb", "a\x1b[2J"):
        with pytest.raises(CheckpointError, match=r"model\.bin: a tensor is called .*, wanted at most") as refused:
            check_name(path, name)
        assert str(refused.value).isprintable()
    check_count(path, MAX_TENSORS)
    with pytest.raises(CheckpointError, match=f"{MAX_TENSORS + 1} tensors, wanted at most {MAX_TENSORS}"):
        check_count(path, MAX_TENSORS + 1)
