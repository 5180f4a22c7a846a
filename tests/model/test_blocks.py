"""The block pool: nothing leaks, nothing is shared by mistake, and kept beginnings give way from their ends."""

from __future__ import annotations

import random

import pytest

from baize_engine.model.blocks import BlockPool, CacheFull, Sequence
from baize_engine.model.buffers import cache_slots


def written(pool: BlockPool, prompt: list[int]) -> Sequence:
    """A sequence that prefill has filled with `prompt`."""
    sequence = pool.begin(prompt)
    pool.reserve(sequence, len(prompt) - sequence.length)
    sequence.length = len(prompt)
    pool.remember(sequence, prompt)
    return sequence


def test_blocks_are_never_shared_nor_lost() -> None:
    pool, live, rng = BlockPool(40, 4), [], random.Random(0)
    for _ in range(500):
        if live and rng.random() < 0.4:
            pool.free(live.pop(rng.randrange(len(live))))
        else:
            sequence = rng.choice(live) if live and rng.random() < 0.6 else pool.allocate()
            grow = rng.randrange(1, 12)
            before = list(sequence.blocks)
            try:
                pool.reserve(sequence, grow)
                sequence.length += grow
            except CacheFull:
                assert sequence.blocks == before
            if sequence not in live:
                live.append(sequence)
        held = [block for sequence in live for block in sequence.blocks]
        assert len(held) == len(set(held))
        assert len(held) + pool.free_blocks == 40
        assert all(len(s.blocks) * 4 >= s.length for s in live)
    for sequence in live:
        pool.free(sequence)
    assert pool.free_blocks == 40


def test_slots_follow_the_table() -> None:
    pool = BlockPool(8, 4)
    other, sequence = pool.allocate(), pool.allocate()
    pool.reserve(other, 4)
    pool.reserve(sequence, 6)
    first, second = sequence.blocks
    assert cache_slots(sequence.blocks, 4, 2, 6) == [first * 4 + 2, first * 4 + 3, second * 4, second * 4 + 1]


def test_a_sequence_is_freed_once_and_by_its_own_pool() -> None:
    pool, stranger = BlockPool(4), BlockPool(4)
    sequence = pool.allocate()
    with pytest.raises(ValueError, match="not of this cache"):
        stranger.free(sequence)
    pool.free(sequence)
    with pytest.raises(ValueError, match="freed already"):
        pool.free(sequence)


def test_whole_chunks_of_equal_beginnings_are_shared() -> None:
    pool = BlockPool(32, 4, 8)
    first = written(pool, list(range(20)))
    second = pool.begin([*range(19), 99])
    assert (second.length, second.blocks) == (16, first.blocks[:4])
    assert pool.begin([*range(8), 99, *range(9, 20)]).blocks == first.blocks[:2]
    assert pool.begin([99, *range(1, 20)]).blocks == []
    assert pool.begin(list(range(16))).length == 8  # the last token is to be computed: its logits are wanted
    assert pool.begin(list(range(17))).length == 16


def test_an_equal_chunk_after_another_beginning_is_another_chunk() -> None:
    pool = BlockPool(32, 4)
    written(pool, [1, 1, 1, 1, 5, 6, 7, 8, 9])
    other = written(pool, [2, 2, 2, 2, 5, 6, 7, 8, 9])
    assert pool.begin([2, 2, 2, 2, 5, 6, 7, 8, 0]).blocks == other.blocks[:2]


def test_only_what_is_written_and_of_the_prompt_is_known() -> None:
    pool = BlockPool(32, 4)
    prompt = list(range(12))
    sequence = pool.begin(prompt)
    pool.reserve(sequence, 20)
    sequence.length = 7  # a piece of the prompt
    pool.remember(sequence, prompt)
    assert pool.begin(prompt).length == 4
    sequence.length = 20  # tokens of steps besides
    pool.remember(sequence, prompt)
    assert pool.begin([*prompt, *range(12, 20)]).length == 12


def test_kept_chunks_are_free_blocks_and_go_from_the_end() -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(17))
    pool.free(written(pool, prompt))
    assert pool.free_blocks == 8
    other = pool.allocate()
    pool.reserve(other, 24)  # 6 blocks: 4 that were never used, and the last two of the prompt
    assert pool.begin(prompt).length == 8
    pool.free(other)
    again = pool.begin(prompt)
    assert again.length == 8
    with pytest.raises(CacheFull):
        pool.reserve(pool.allocate(), 4 * 7)  # what is held does not go


def test_a_chunk_goes_as_a_whole() -> None:
    pool = BlockPool(6, 4, 8)
    pool.free(written(pool, list(range(17))))
    other = pool.allocate()
    pool.reserve(other, 12)  # the two blocks outside of chunks, and one of the second chunk
    assert pool.begin(list(range(17))).length == 8
    assert pool.free_blocks == 1


def test_what_is_forgotten_is_shared_no_more_and_nothing_leaks() -> None:
    pool = BlockPool(8, 4)
    pool.free(written(pool, list(range(9))))
    held = written(pool, list(range(13)))
    pool.forget()
    assert pool.begin(list(range(13))).length == 0
    pool.free(held)
    assert pool.free_blocks == 8
    assert pool.begin(list(range(13))).length == 0


def test_twins_share_whole_blocks() -> None:
    pool = BlockPool(6, 4)
    first = written(pool, list(range(10)))
    second, copy = pool.fork(first)
    assert second.blocks[:2] == first.blocks[:2]
    assert copy == (first.blocks[2], second.blocks[2])
    third, _ = pool.fork(first)
    assert pool.free_blocks == 1
    pool.free(first)
    assert pool.free_blocks == 2  # its own last block
    pool.free(second)
    pool.free(third)
    assert pool.free_blocks == 6
    whole = written(pool, [7] * 8)
    twin, copy = pool.fork(whole)
    assert (twin.blocks, copy) == (whole.blocks, None)


def test_a_fork_without_a_block_changes_nothing() -> None:
    pool = BlockPool(2, 4)
    first = written(pool, list(range(6)))
    with pytest.raises(CacheFull):
        pool.fork(first)
    pool.free(first)
    assert pool.free_blocks == 2


def test_a_chunk_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="chunk is 6, wanted a multiple of block_size, 4"):
        BlockPool(4, 4, 6)


class Guest:
    """Holds `count` blocks of a pool between its calls."""

    def __init__(self, pool: BlockPool, count: int) -> None:
        self.pool, self.sequence = pool, pool.allocate()
        pool.reserve(self.sequence, count * pool.block_size)
        pool.tenants.append(self)

    def give_way(self) -> None:
        self.pool.free(self.sequence)
        self.sequence = self.pool.allocate()


def test_the_youngest_tenant_gives_way_first_and_never_who_asks() -> None:
    pool = BlockPool(8, 4)
    first, second, third = Guest(pool, 3), Guest(pool, 2), Guest(pool, 3)
    assert pool.make_room(third)
    assert [len(each.sequence.blocks) for each in (first, second, third)] == [3, 0, 3]
    assert pool.make_room(third)
    assert [len(each.sequence.blocks) for each in (first, second, third)] == [0, 0, 3]
    assert not pool.make_room(third)
    assert pool.make_room()
    assert pool.free_blocks == 8
    assert not pool.make_room()
