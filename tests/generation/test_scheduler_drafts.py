"""The scheduler's part in speculation: draft tokens take room that nobody needs, for one step."""

from __future__ import annotations

from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.scheduler import Launch, Prefill, Scheduler
from baize_engine.generation.sequence import Sequence


def drafting(blocks: int, prompts: int = 1) -> tuple[Scheduler, list[Sequence]]:
    """Sequences whose prompts of 4 tokens are computed, in a pool of blocks of 4; they have made a token of 20."""
    pool = BlockPool(blocks, 4, 4)
    scheduler = Scheduler(pool, 4, 4)
    many = [Sequence([n + 1] * 4, SamplingParams(), 20) for n in range(prompts)]
    scheduler.add(many)
    for _ in many:
        action = scheduler.schedule(False)
        assert isinstance(action, Prefill)
        for piece in action.pieces:
            piece.sequence.num_cached = piece.end
            scheduler.prefilled(piece.sequence)
            piece.sequence.token_ids.append(7)
    return scheduler, many


def test_draft_tokens_take_free_blocks_and_give_them_back() -> None:
    scheduler, (one,) = drafting(4)
    assert isinstance(scheduler.schedule(False), Launch)
    assert (len(one.block_table), one.num_in_flight, one.num_left) == (2, 1, 18)
    assert scheduler.draft(one, 99) == 11
    assert (len(one.block_table), one.num_in_flight, one.num_left) == (4, 12, 7)
    scheduler.drafted(one, 6)
    assert (len(one.block_table), one.num_in_flight, one.num_left) == (3, 7, 12)
    scheduler.drafted(one, 6)
    for _ in range(2):
        scheduler.arrived(one)
        one.token_ids.append(7)
    scheduler.verified(one)
    assert (len(one.block_table), one.num_in_flight, one.num_cached, one.num_left) == (2, 0, 6, 17)
    assert isinstance(scheduler.schedule(False), Launch)
    assert (len(one.block_table), one.num_in_flight) == (2, 1)


def test_drafts_that_are_not_proposed_leave_the_step_as_it_was() -> None:
    scheduler, (one,) = drafting(4)
    scheduler.schedule(False)
    before = list(one.block_table)
    assert scheduler.draft(one, 9) == 9
    scheduler.drafted(one, 0)
    assert (one.block_table, one.num_in_flight) == (before, 1)
    scheduler.arrived(one)
    assert (one.num_in_flight, one.num_cached) == (0, 5)


def test_a_draft_preempts_nobody() -> None:
    """Two sequences and one free block: the first to ask gets it, the next nothing."""
    scheduler, many = drafting(5, prompts=2)
    action = scheduler.schedule(False)
    assert isinstance(action, Launch)
    assert action.sequences == many
    assert [scheduler.draft(one, 9) for one in many] == [3 + 4, 3]
    for one in many:
        scheduler.arrived(one)
        one.token_ids.append(7)
        scheduler.verified(one)
    assert [len(one.block_table) for one in many] == [2, 2]


def test_a_sequence_that_ends_in_a_draft_frees_its_blocks() -> None:
    scheduler, (one,) = drafting(4)
    scheduler.schedule(False)
    assert scheduler.draft(one, 9) == 9
    scheduler.arrived(one)
    scheduler.finish(one)
    assert (one.num_in_flight, one.block_table, scheduler.schedule(False)) == (0, [], None)
