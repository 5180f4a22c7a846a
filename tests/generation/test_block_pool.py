"""The block pool: nothing leaks, nothing is shared by mistake, and kept beginnings give way from their ends."""

from __future__ import annotations

import random

import pytest

from baize_engine.generation.block_pool import BlockPool, CacheFull
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.scoring import GivenTokens
from baize_engine.generation.sequence import Sequence


def asked(prompt: list[int] | None = None) -> Sequence:
    """A sequence that nothing has been done with."""
    return Sequence(prompt or [], SamplingParams(), 1)


def begun(pool: BlockPool, prompt: list[int]) -> Sequence:
    """A sequence with what the pool knows of its prompt."""
    sequence = asked(prompt)
    pool.begin(sequence)
    return sequence


def written(pool: BlockPool, prompt: list[int]) -> Sequence:
    """A sequence that prefill has filled with `prompt`."""
    sequence = begun(pool, prompt)
    pool.reserve(sequence, len(prompt) - sequence.num_cached)
    sequence.num_cached = len(prompt)
    pool.remember(sequence)
    return sequence


def forked(pool: BlockPool, sequence: Sequence) -> tuple[Sequence, tuple[int, int] | None]:
    twin = asked(sequence.prompt_ids)
    return twin, pool.fork(sequence, twin)


def test_blocks_are_never_shared_nor_lost() -> None:
    pool, live, rng = BlockPool(40, 4), [], random.Random(0)
    for _ in range(500):
        if live and rng.random() < 0.4:
            pool.free(live.pop(rng.randrange(len(live))))
        else:
            sequence = rng.choice(live) if live and rng.random() < 0.6 else asked()
            grow = rng.randrange(1, 12)
            before = list(sequence.block_table)
            try:
                pool.reserve(sequence, grow)
                sequence.num_cached += grow
            except CacheFull:
                assert sequence.block_table == before
            if sequence not in live:
                live.append(sequence)
        held = [block for sequence in live for block in sequence.block_table]
        assert len(held) == len(set(held))
        assert len(held) + pool.free_blocks == 40
        assert all(len(s.block_table) * 4 >= s.num_cached for s in live)
    for sequence in live:
        pool.free(sequence)
    assert pool.free_blocks == 40


def test_a_sequence_is_freed_once_and_by_its_own_pool() -> None:
    pool, stranger = BlockPool(4), BlockPool(4)
    sequence = begun(pool, [1, 2])
    with pytest.raises(ValueError, match="nothing in this cache"):
        stranger.free(sequence)
    pool.free(sequence)
    with pytest.raises(ValueError, match="freed already"):
        pool.free(sequence)


def test_whole_chunks_of_equal_beginnings_are_shared() -> None:
    pool = BlockPool(32, 4, 8)
    first = written(pool, list(range(20)))
    second = begun(pool, [*range(19), 99])
    assert (second.num_cached, second.block_table) == (16, first.block_table[:4])
    assert begun(pool, [*range(8), 99, *range(9, 20)]).block_table == first.block_table[:2]
    assert begun(pool, [99, *range(1, 20)]).block_table == []
    assert begun(pool, list(range(16))).num_cached == 8  # the last token is to be computed: its logits are wanted
    assert begun(pool, list(range(17))).num_cached == 16


def test_an_equal_chunk_after_another_beginning_is_another_chunk() -> None:
    pool = BlockPool(32, 4)
    written(pool, [1, 1, 1, 1, 5, 6, 7, 8, 9])
    other = written(pool, [2, 2, 2, 2, 5, 6, 7, 8, 9])
    assert begun(pool, [2, 2, 2, 2, 5, 6, 7, 8, 0]).block_table == other.block_table[:2]


def test_only_what_is_written_and_of_the_prompt_is_known() -> None:
    pool = BlockPool(32, 4)
    prompt = list(range(12))
    sequence = begun(pool, prompt)
    pool.reserve(sequence, 20)
    sequence.num_cached = 7  # a piece of the prompt
    pool.remember(sequence)
    assert begun(pool, prompt).num_cached == 4
    sequence.num_cached = 20  # tokens of steps besides
    pool.remember(sequence)
    assert begun(pool, [*prompt, *range(12, 20)]).num_cached == 12


def test_kept_chunks_are_free_blocks_and_go_from_the_end() -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(17))
    pool.free(written(pool, prompt))
    assert pool.free_blocks == 8
    other = asked()
    pool.reserve(other, 24)  # 6 blocks: 4 that were never used, and the last two of the prompt
    assert begun(pool, prompt).num_cached == 8
    pool.free(other)
    again = begun(pool, prompt)
    assert again.num_cached == 8
    with pytest.raises(CacheFull):
        pool.reserve(asked(), 4 * 7)  # what is held does not go


def test_a_chunk_goes_as_a_whole() -> None:
    pool = BlockPool(6, 4, 8)
    pool.free(written(pool, list(range(17))))
    other = asked()
    pool.reserve(other, 12)  # the two blocks outside of chunks, and one of the second chunk
    assert begun(pool, list(range(17))).num_cached == 8
    assert pool.free_blocks == 1


def test_what_is_forgotten_is_shared_no_more_and_nothing_leaks() -> None:
    pool = BlockPool(8, 4)
    pool.free(written(pool, list(range(9))))
    held = written(pool, list(range(13)))
    pool.forget()
    assert begun(pool, list(range(13))).num_cached == 0
    pool.free(held)
    assert pool.free_blocks == 8
    assert begun(pool, list(range(13))).num_cached == 0


def test_twins_share_whole_blocks() -> None:
    pool = BlockPool(6, 4)
    first = written(pool, list(range(10)))
    second, copy = forked(pool, first)
    assert second.block_table[:2] == first.block_table[:2]
    assert copy == (first.block_table[2], second.block_table[2])
    third, _ = forked(pool, first)
    assert pool.free_blocks == 1
    pool.free(first)
    assert pool.free_blocks == 2  # its own last block
    pool.free(second)
    pool.free(third)
    assert pool.free_blocks == 6
    whole = written(pool, [7] * 8)
    twin, copy = forked(pool, whole)
    assert (twin.block_table, copy) == (whole.block_table, None)


def test_a_fork_without_a_block_changes_nothing() -> None:
    pool = BlockPool(2, 4)
    first = written(pool, list(range(6)))
    with pytest.raises(CacheFull):
        forked(pool, first)
    pool.free(first)
    assert pool.free_blocks == 2


def test_a_chunk_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="chunk is 6, wanted a multiple of block_size, 4"):
        BlockPool(4, 4, 6)


def test_a_prompt_shares_only_what_it_needs_no_logits_of() -> None:
    pool = BlockPool(32, 4)
    prompt = list(range(16))
    first = written(pool, prompt)
    for start, shared in ((1, 0), (4, 0), (5, 4), (12, 8), (13, 12), (16, 12)):
        scored = Sequence(prompt, SamplingParams(), 0, scoring=GivenTokens([*prompt, 5], start))
        pool.begin(scored)
        assert (scored.num_cached, scored.block_table) == (shared, first.block_table[: shared // 4])
        assert scored.num_cached < start
        pool.free(scored)


def growing(pool: BlockPool, tokens: int, next_tokens: int = 1) -> Sequence:
    """A sequence of so many cached tokens that has room for the next."""
    sequence = asked()
    pool.reserve(sequence, tokens + next_tokens)
    sequence.num_cached = tokens
    return sequence


def test_more_tokens_are_reserved_as_far_as_blocks_are_free() -> None:
    pool = BlockPool(4, 4)
    sequence = growing(pool, 6)
    assert pool.reserve_free(sequence, 1, 0) == 0
    assert pool.reserve_free(sequence, 1, 1) == 1
    assert len(sequence.block_table) == 2  # 6 + 1 + 1 tokens
    assert pool.reserve_free(sequence, 1, 2) == 2
    assert len(sequence.block_table) == 3
    assert pool.reserve_free(sequence, 1, 99) == 16 - 7
    assert (len(sequence.block_table), pool.free_blocks) == (4, 0)
    pool.free(sequence)
    assert pool.free_blocks == 4


def test_a_known_beginning_is_not_forgotten_for_more_tokens() -> None:
    """Though its blocks count as free."""
    pool = BlockPool(5, 4)
    pool.free(written(pool, list(range(9))))
    sequence = growing(pool, 5)
    assert pool.free_blocks == 3  # two of them are kept
    assert pool.reserve_free(sequence, 1, 99) == 12 - 6
    assert pool.free_blocks == 2
    assert begun(pool, list(range(9))).num_cached == 8


def test_a_sequence_is_trimmed_to_its_tokens() -> None:
    pool = BlockPool(5, 4)
    sequence = growing(pool, 6)
    table = list(sequence.block_table)
    pool.trim(sequence)
    assert sequence.block_table == table
    assert pool.reserve_free(sequence, 1, 13) == 13
    whole = list(sequence.block_table)
    assert len(whole) == 5
    pool.trim(sequence, 7)
    assert sequence.block_table == whole[:4]
    pool.trim(sequence, 1)
    assert sequence.block_table == table
    sequence.num_cached = 4
    pool.trim(sequence)
    assert sequence.block_table == table[:1]
    assert pool.free_blocks == 4
    with pytest.raises(ValueError, match="nothing in this cache"):
        pool.trim(asked())


def test_trimming_leaves_what_others_hold() -> None:
    pool = BlockPool(8, 4)
    first = written(pool, list(range(8)))
    twin, copy = forked(pool, first)
    assert copy is None
    for sequence in (first, twin):
        pool.reserve(sequence, 1)
        assert pool.reserve_free(sequence, 1, 6) == 6
    assert pool.free_blocks == 8 - 2 - 2 * 2
    pool.trim(twin)
    assert twin.block_table == first.block_table[:2]
    assert pool.free_blocks == 4
    pool.free(first)
    assert begun(pool, list(range(9))).block_table == twin.block_table
    pool.free(twin)
