"""The cache's memory: its size, and blocks that move. Whose they are: generation/test_block_pool.py."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import tiny
import torch

from baize_engine.checkpoint.buffers import HUGE
from baize_engine.model.buffers import cache_slots
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache

CONFIG = ModelConfig.from_dict(tiny.config())


def filled(dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(CONFIG, 8, 4, dtype)
    for part in (cache.keys, cache.values):
        part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(len(part))))
    return cache


def test_size_in_bytes_is_that_of_the_tensors() -> None:
    cache = KVCache(CONFIG, 5, 16, torch.float16)
    size = KVCache.nbytes(CONFIG, 5 * 16 - 3, torch.float16)
    assert size == cache.keys.nbytes + cache.values.nbytes
    assert [KVCache.tokens_in(CONFIG, size + more, torch.float16) for more in (-1, 0, 1)] == [4 * 16, 5 * 16, 5 * 16]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident pages as Linux does")
def test_a_short_text_takes_little_of_a_long_cache() -> None:
    cache = KVCache(CONFIG, 8192)
    assert cache.keys[0].nbytes > 4 * HUGE
    before = resident()
    cache.keys[:, :3] = cache.values[:, :3] = 1.0
    assert cache.keys[:, 3:].data_ptr() % 64 == 0
    assert resident() - before < HUGE
    assert not cache.keys[:, 3].any()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_copied_block_is_the_block_in_every_layer() -> None:
    cache = filled()
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.copy_block(2, 5)
    keys[:, 5], values[:, 5] = keys[:, 2], values[:, 2]
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


def test_slots_follow_the_table() -> None:
    assert cache_slots([5, 3], 4, 2, 6) == [5 * 4 + 2, 5 * 4 + 3, 3 * 4, 3 * 4 + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_blocks_that_were_swapped_out_come_back_to_other_places(dtype: torch.dtype) -> None:
    cache = filled(dtype)
    keys, values = cache.keys[:, [6, 1]].clone(), cache.values[:, [6, 1]].clone()
    cache.swap_out(3, [6, 1])
    cache.keys.zero_()
    cache.values.zero_()
    cache.swap_in(3, 0, [0, 3])
    assert torch.equal(cache.keys[:, [0, 3]], keys)
    assert torch.equal(cache.values[:, [0, 3]], values)
    assert not cache.keys[:, [1, 2, 4, 5, 6, 7, 8]].any()
