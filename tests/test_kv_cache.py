"""The block pool: nothing leaks, nothing is shared by mistake."""

from __future__ import annotations

import random

import pytest
import tiny
import torch

from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import CacheFull, KVCache

CONFIG = ModelConfig.from_dict(tiny.config())


def test_blocks_are_never_shared_nor_lost() -> None:
    cache, live, rng = KVCache(CONFIG, 40, 4), [], random.Random(0)
    for _ in range(500):
        if live and rng.random() < 0.4:
            cache.free(live.pop(rng.randrange(len(live))))
        else:
            sequence = rng.choice(live) if live and rng.random() < 0.6 else cache.allocate()
            grow = rng.randrange(1, 12)
            before = list(sequence.blocks)
            try:
                cache.reserve(sequence, grow)
                sequence.length += grow
            except CacheFull:
                assert sequence.blocks == before
            if sequence not in live:
                live.append(sequence)
        held = [block for sequence in live for block in sequence.blocks]
        assert len(held) == len(set(held))
        assert len(held) + cache.free_blocks == 40
        assert all(len(s.blocks) * 4 >= s.length for s in live)
    for sequence in live:
        cache.free(sequence)
    assert cache.free_blocks == 40


def test_slots_follow_the_table() -> None:
    cache = KVCache(CONFIG, 8, 4)
    other, sequence = cache.allocate(), cache.allocate()
    cache.reserve(other, 4)
    cache.reserve(sequence, 6)
    first, second = sequence.blocks
    assert cache.slots(sequence, 2, 6) == [first * 4 + 2, first * 4 + 3, second * 4, second * 4 + 1]


def test_a_sequence_is_freed_once_and_by_its_own_cache() -> None:
    cache, stranger = KVCache(CONFIG, 4), KVCache(CONFIG, 4)
    sequence = cache.allocate()
    with pytest.raises(ValueError, match="not of this cache"):
        stranger.free(sequence)
    cache.free(sequence)
    with pytest.raises(ValueError, match="freed already"):
        cache.free(sequence)


def test_size_in_bytes_is_that_of_the_tensors() -> None:
    cache = KVCache(CONFIG, 5, 16, torch.float16)
    assert KVCache.nbytes(CONFIG, 5 * 16 - 3, torch.float16) == cache.keys.nbytes + cache.values.nbytes
