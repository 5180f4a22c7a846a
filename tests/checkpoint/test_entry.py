"""Where a tensor's elements lie: ranges of tensors that are joined of several files, and of heads that are reordered."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
import tiny_meta
import torch

from baize_engine.checkpoint.meta_layout import read_meta
from baize_engine.checkpoint.tensor_reader import TensorReader

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
