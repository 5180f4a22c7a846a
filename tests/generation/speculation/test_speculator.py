"""The speculator: who gets draft tokens, how many, and what their step takes."""

from __future__ import annotations

from collections import abc

import pytest

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.model.step_costs import StepCosts

CHEAP = StepCosts({1: 1.0, 2: 1.0})  # a step takes the same time however many rows it has
DEAR = StepCosts({1: 1.0, 2: 2.0})


class Counting:
    """Proposes 5, 6, 7 … for sequences whose prompt begins with 1, up to four of them."""

    token_cost = 0.25

    def prospect(self, sequence: Sequence) -> Prospect:
        return Prospect(0.9, 4) if sequence.prompt_ids[0] == 1 else NOTHING

    def propose(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> list[list[int]]:
        return [[*range(5, 5 + count)] for _, count in wanted]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        raise AssertionError("the loop says that")

    def moved(self, sequence: Sequence) -> None:
        raise AssertionError("the loop says that")


class FreeCounting(Counting):
    token_cost = 0.0


def sequence(first: int = 1, left: int = 20) -> Sequence:
    return Sequence([first], SamplingParams(), left)


def all_of(_: Sequence, count: int) -> int:
    return count


def test_a_sequence_gets_as_many_tokens_as_can_be_proposed() -> None:
    one = sequence()
    speculator = Speculator(FreeCounting(), CHEAP, 15, 64)
    assert speculator.waits([one])
    assert speculator.drafts([one], all_of) == {one: [5, 6, 7, 8]}


@pytest.mark.parametrize(
    ("most", "max_rows", "left", "count"),
    [(3, 64, 20, 3), (15, 3, 20, 2), (15, 64, 3, 2), (15, 64, 1, 0), (15, 1, 20, 0)],
)
def test_the_most_tokens_the_most_rows_and_the_tokens_left_are_bounds(
    most: int, max_rows: int, left: int, count: int
) -> None:
    one = sequence(left=left)
    speculator = Speculator(FreeCounting(), CHEAP, most, max_rows)
    assert [len(draft) for draft in speculator.drafts([one], all_of).values()] == [count] * (count > 0)
    assert speculator.waits([one]) == (count > 0)


def test_only_sequences_with_a_prospect_and_room_get_tokens() -> None:
    nothing, full, one = sequence(2), sequence(), sequence()
    asked = []

    def reserve(given: Sequence, count: int) -> int:
        asked.append(given)
        return 0 if given is full else count - 1

    found = Speculator(FreeCounting(), CHEAP, 15, 64).drafts([nothing, full, one], reserve)
    assert found == {one: [5, 6, 7]}
    assert asked == [full, one]


def test_nothing_is_proposed_where_rows_or_proposals_take_the_time_that_they_save() -> None:
    one = sequence()
    assert not Speculator(FreeCounting(), DEAR, 15, 64).waits([one])
    assert Speculator(FreeCounting(), DEAR, 15, 64).drafts([one], all_of) == {}
    assert (
        len(Speculator(Counting(), CHEAP, 15, 64).drafts([one], all_of)[one]) == 4
    )  # the fourth: 4.10 / 2 against 3.44 / 1.75


def test_the_time_of_a_step_is_that_of_its_rows_and_its_proposals() -> None:
    speculator = Speculator(Counting(), StepCosts({1: 2.0, 2: 3.0, 4: 4.0}), 15, 64)
    assert [speculator.step_time(1), speculator.step_time(2), speculator.step_time(3)] == [1.0, 1.5, 1.75]
    assert speculator.step_time(1, drafts=3) == 2.0 + 3 * 0.25
