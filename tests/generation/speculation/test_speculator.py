"""Which sequences get draft tokens: no more than they may still make, than asked for, than rows and blocks there are."""

from __future__ import annotations

import random

import decoders
import pytest
import tiny
from proposers import FREE, Garbage, Oracle, Proposals, Silent, ask, engine_of

from baize_engine import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.model.runner import Batch, Verified
from baize_engine.model.step_costs import StepCosts


def running(left: int, made: int = 1) -> Sequence:
    """A sequence that has made some tokens and may make `left` more."""
    sequence = Sequence([5, 6], SamplingParams(), made + left)
    sequence.token_ids = [7] * made
    return sequence


def drafts(speculator: Speculator, sequences: list[Sequence], blocks: int = 99) -> list[int]:
    """How many draft tokens each of them gets if each has room for `blocks`."""
    found = speculator.drafts(sequences, lambda sequence, count: min(count, blocks))
    assert all(draft for draft in found.values())
    return [len(found.get(sequence, [])) for sequence in sequences]


class Chances(Proposals):
    """Proposes for each sequence with the chance that is its seed, in percent."""

    token_cost = 0.25

    def prospect(self, sequence: Sequence) -> Prospect:
        return Prospect(sequence.seed / 100, self.most) if sequence.seed else NOTHING

    def draft(self, sequence: Sequence, count: int) -> list[int]:
        return [5] * count


def test_a_step_makes_one_token_more_than_it_verifies() -> None:
    """So that a sequence that may make n more tokens gets at most n - 1."""
    speculator = Speculator(Garbage(most=6), FREE, 8, 64)
    assert drafts(speculator, [running(left) for left in range(1, 10)]) == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert not speculator.waits([running(1)])
    assert speculator.waits([running(1), running(2)])
    assert drafts(speculator, []) == []
    assert not speculator.waits([])


@pytest.mark.parametrize("most", [1, 3, 63])
def test_at_most_the_tokens_asked_for(most: int) -> None:
    speculator = Speculator(Garbage(most=40), FREE, most, 64)
    assert drafts(speculator, [running(99)]) == [min(most, 40)]


@pytest.mark.parametrize(
    ("sequences", "rows", "drafted"), [(1, 64, 63), (60, 64, 4), (63, 64, 1), (64, 64, 0), (2, 2, 0)]
)
def test_at_most_the_rows_of_a_step(sequences: int, rows: int, drafted: int) -> None:
    speculator = Speculator(Garbage(most=63), FREE, 63, rows)
    many = [running(99) for _ in range(sequences)]
    assert sum(drafts(speculator, many)) == drafted
    assert speculator.waits(many) is (drafted > 0)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_at_most_the_room_in_blocks(blocks: int) -> None:
    assert drafts(Speculator(Garbage(), FREE, 8, 64), [running(99), running(2)], blocks) == [blocks, min(1, blocks)]


def test_who_has_nothing_to_propose_gets_no_draft() -> None:
    assert drafts(Speculator(Silent(), FREE, 8, 64), [running(9)]) == [0]
    assert drafts(Speculator(Oracle({}), FREE, 8, 64), [running(9)]) == [0]


def test_only_what_pays_is_proposed_and_for_the_likeliest_first() -> None:
    """Three rows take 1.2 steps and make 3 tokens; one more row and its proposal take 0.35."""
    many = [running(99), running(99), running(99)]
    many[0].seed, many[1].seed, many[2].seed = 30, 100, 0
    speculator = Speculator(Chances(), StepCosts({1: 1.0, 11: 2.0}), 8, 64)
    assert drafts(speculator, many) == [0, 6, 0]
    many[1].seed = 80
    assert not speculator.waits(many)
    dear = Speculator(Chances(), StepCosts({1: 1.0, 2: 2.0}), 8, 64)
    many[1].seed = 100
    assert not dear.waits(many)


def test_blocks_that_are_short_make_drafts_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 tokens fit in the cache, the prompt has 20: the last answer that fits is made, and all rows have blocks."""
    verified: list[list[Verified[Sequence]]] = []
    verify = Batch.verify

    def recorded(batch: Batch[Sequence], proposed: dict[Sequence, list[int]]) -> list[Verified[Sequence]]:
        for sequence in batch.sequences:
            rows = sequence.num_cached + 1 + len(proposed.get(sequence, []))
            assert sequence.num_in_flight == 1 + len(proposed.get(sequence, []))
            assert len(sequence.block_table) == -(-rows // 16)
        verified.append(verify(batch, proposed))
        return verified[-1]

    monkeypatch.setattr(Batch, "verify", recorded)
    model = decoders.make(tiny.config(num_key_value_heads=2))
    params = [SamplingParams(max_new_tokens=13, ignore_eos=True)]
    wanted = ask(engine_of(model), [decoders.prompt(20)], params)
    rng = random.Random(0)
    for most in (1, 5, 15):
        oracle = Oracle({(0, 0): wanted[0].token_ids}, 0.9, rng.randrange(99), most)
        assert ask(engine_of(model, oracle, 32), [decoders.prompt(20)], params) == wanted
    params = [SamplingParams(max_new_tokens=14, ignore_eos=True)]
    plain = ask(engine_of(model, None, 32), [decoders.prompt(20)], params)
    oracle = Oracle({(0, 0): [*wanted[0].token_ids, 5]}, most=15)
    assert ask(engine_of(model, oracle, 32), [decoders.prompt(20)], params) == plain
    assert plain[0].token_ids == wanted[0].token_ids
    assert "raise cache_tokens" in str(plain[0].error)
    assert [len(row.draft) for step in verified for row in step][-1] == 11  # positions 21 to 31, though 12 were wanted


def test_nothing_is_proposed_where_rows_take_the_time_that_they_save() -> None:
    one = Sequence([1], SamplingParams(), 20, seed=90)
    dear, cheap = StepCosts({1: 1.0, 2: 2.0}), StepCosts({1: 1.0, 2: 1.0})
    assert not Speculator(Chances(most=4), dear, 15, 64).waits([one])
    # the fourth: 4.10 tokens in 2 steps' time against 3.44 in 1.75
    assert drafts(Speculator(Chances(most=4), cheap, 15, 64), [one]) == [4]


def test_the_time_of_a_step_is_that_of_its_rows_and_its_proposals() -> None:
    speculator = Speculator(Chances(most=4), StepCosts({1: 2.0, 2: 3.0, 4: 4.0}), 15, 64)
    assert [speculator.step_time(1), speculator.step_time(2), speculator.step_time(3)] == [1.0, 1.5, 1.75]
    assert speculator.step_time(1, [3]) == 2.0 + 3 * 0.25
    # two sequences propose together: a step of two rows of the draft, and one of one
    assert speculator.step_time(2, [2, 1]) == StepCosts({1: 2.0, 2: 3.0, 4: 4.0}).of(5) + (1.5 + 1.0) * 0.25


def test_what_verifying_takes_besides_is_counted() -> None:
    one, costs = Sequence([1], SamplingParams(), 20, seed=90), StepCosts({1: 1.0, 2: 1.0}, verifying=4.0)
    speculator = Speculator(Chances(most=4), costs, 15, 64)
    assert [speculator.step_time(1), speculator.step_time(1, [0]), speculator.step_time(1, [2])] == [1.0, 1.0, 5.5]
    assert not speculator.waits([one])
