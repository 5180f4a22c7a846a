"""What is learnt from verified tokens, what failing costs at most, and the choice of rows against all choices there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import at_leisure

from baize_engine.generation.speculation.pace import HALF_LIFE, WINDOW, Pace, allot, drafting_time
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.model.step_costs import StepCosts, step_costs

COSTS = {(kind, gpu): step_costs(kind, gpu) for kind in ("float32", "float16", "int8", "int4") for gpu in (False, True)}
MOST = 15


def test_a_chance_is_a_share_of_what_was_verified_and_of_what_is_assumed() -> None:
    pace = Pace(1.0, 3.0)
    assert pace.chance(0) == pace.chance(1000) == 0.25
    pace.verified(1, 1, 0)
    assert pace.chance(0) == pytest.approx(2 / 5)
    pace.verified(1, 0, 0)
    kept = 1 - 1 / WINDOW
    assert pace.chance(0) == pytest.approx((1 + kept) / (4 + kept + 1))


def test_tokens_after_the_first_rejected_one_say_nothing() -> None:
    some, many = Pace(), Pace()
    some.verified(3, 2, 10)
    many.verified(9, 2, 10)
    assert some.chance(10) == many.chance(10)


def test_what_was_seen_fades_with_the_text() -> None:
    pace = Pace(1.0, 1.0)
    pace.verified(1, 0, 100)
    assert pace.chance(100) == pytest.approx(1 / 3)
    assert pace.chance(100 + HALF_LIFE) == pytest.approx(1 / 2.5)
    assert pace.chance(100 + 50 * HALF_LIFE) == pytest.approx(1 / 2)
    pace.verified(1, 0, 100 + HALF_LIFE)
    assert pace.chance(100 + HALF_LIFE) == pytest.approx(1 / (3 + 0.5 * (1 - 1 / WINDOW)))


def test_a_long_past_does_not_hide_a_change() -> None:
    pace = Pace()
    for _ in range(100):
        pace.verified(8, 8, 0)
    assert pace.chance(0) > 0.95
    for _ in range(2 * WINDOW):
        pace.verified(1, 0, 0)
    assert pace.chance(0) < 0.2
    pace.verified(8, 8, 0)
    assert 0.3 < pace.chance(0) < 0.5


def rejected(costs: StepCosts, sequences: int, tokens: int) -> float:
    """The time lost by a batch whose sequences could propose after every token, and nothing is ever accepted, as a share of
    the time without proposals."""
    paces, time = [Pace() for _ in range(sequences)], 0.0
    for position in range(tokens):
        counts = allot([Prospect(pace.chance(position), 15) for pace in paces], sequences, 64 - sequences, costs, 0.0)
        for pace, count in zip(paces, counts, strict=True):
            if count:
                pace.verified(count, 0, position)
        time += costs.of(sequences + sum(counts))
    return time / (tokens * costs.of(sequences)) - 1


@pytest.mark.parametrize("sequences", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("kind", "on_gpu"), COSTS)
def test_what_is_never_accepted_costs_little(kind: str, on_gpu: bool, sequences: int) -> None:
    for tokens, most in ((60, 0.03), (200, 0.021), (1000, 0.02)):
        assert rejected(COSTS[kind, on_gpu], sequences, tokens) <= most


@pytest.mark.parametrize(("kind", "on_gpu"), COSTS)
def test_a_text_that_begins_to_quote_is_followed(kind: str, on_gpu: bool) -> None:
    costs, pace, position = COSTS[kind, on_gpu], Pace(), 0
    while position < 1000:  # nothing is accepted
        (count,) = allot([Prospect(pace.chance(position), 15)], 1, 15, costs, 0.0)
        if count:
            pace.verified(count, 0, position)
        position += 1
    steps = 0
    while position < 1100:  # everything is
        (count,) = allot([Prospect(pace.chance(position), 15)], 1, 15, costs, 0.0)
        if count:
            pace.verified(count, count, position)
        position += 1 + count
        steps += 1
    assert steps < 70


CHANCES = st.one_of(st.floats(1e-6, 1.0), st.sampled_from([0.5, 0.9, 1.0]))
PROSPECTS = st.lists(st.builds(Prospect, CHANCES, st.integers(0, 4)), max_size=3)
STEPS = st.lists(st.floats(-0.3, 2.0), min_size=1, max_size=16)  # what each further row adds


def speed(prospects: list[Prospect], counts: tuple[int, ...], rows: int, costs: StepCosts, token_cost: float) -> float:
    expected = rows + sum(
        one.chance**n for one, count in zip(prospects, counts, strict=True) for n in range(1, count + 1)
    )
    drafting = token_cost * drafting_time(counts, costs)
    return expected / (costs.of(rows + sum(counts)) + (costs.verifying if any(counts) else 0.0) + drafting)


@settings(at_leisure, max_examples=400)
@given(PROSPECTS, st.integers(0, 3), st.integers(0, 9), STEPS, st.sampled_from([0.0, 0.05, 0.4]))
def test_no_other_allotment_is_faster_but_where_a_draft_model_s_steps_are_shared(
    prospects: list[Prospect], others: int, room: int, steps: list[float], token_cost: float
) -> None:
    times = {1: 1.0}
    for rows, more in enumerate(steps, 2):
        times[rows] = max(times[rows - 1] + more, 0.1)
    costs, rows = StepCosts({**times, 40: times[len(times)] + 9}), len(prospects) + others
    counts = tuple(allot(prospects, rows, room, costs, token_cost))
    assert len(counts) == len(prospects)
    assert sum(counts) <= room
    assert all(0 <= count <= one.most for one, count in zip(prospects, counts, strict=True))
    if prospects:
        choices = [c for c in product(*(range(one.most + 1) for one in prospects)) if sum(c) <= room]
        fastest = max(speed(prospects, choice, rows, costs, token_cost) for choice in choices)
        # a draft's step is cheaper for a sequence where others take it, which the order by chance does not see
        assert speed(prospects, counts, rows, costs, token_cost) >= fastest * (0.7 if token_cost else 1 - 1e-9)


def test_a_sequence_alone_proposes_and_a_full_machine_does_not() -> None:
    four_for_a_quarter = StepCosts({1: 1.0, 4: 1.25, 8: 1.6, 16: 2.7, 32: 5.1})
    assert allot([Prospect(0.9, 15)], 1, 63, four_for_a_quarter, 0.0)[0] >= 4
    assert allot([Prospect(0.02, 15)], 1, 63, four_for_a_quarter, 0.0) == [0]
    assert allot([Prospect(0.8, 15)] * 16, 16, 48, four_for_a_quarter, 0.0) == [0] * 16
    assert allot([Prospect(0.9, 15)], 1, 63, four_for_a_quarter, 0.9) == [0]
    assert allot([], 0, 64, four_for_a_quarter, 0.0) == []
    assert allot([Prospect(0.0, 15)], 1, 63, StepCosts({1: 1.0, 4: 0.5}), 0.0) == [0]  # not even where rows save time


def test_tokens_go_to_the_likeliest() -> None:
    costs = StepCosts({1: 1.0, 64: 1.1})
    assert allot([Prospect(0.5, 4), NOTHING, Prospect(0.9, 4), Prospect(0.9, 1)], 4, 4, costs, 0.0) == [0, 0, 3, 1]
