"""What a sequence says of itself, wherever it is."""

from __future__ import annotations

import pytest

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.scoring import GivenTokens, NextToken
from baize_engine.generation.sequence import Sequence, Status


def test_tokens_in_flight_count_as_made_but_have_no_position_yet() -> None:
    sequence = Sequence([1, 5, 6], SamplingParams(), 4, index=2)
    assert (sequence.num_tokens, sequence.num_left, sequence.status) == (3, 4, Status.WAITING)
    sequence.token_ids += [7, 8]
    sequence.num_in_flight = 1
    assert (sequence.num_tokens, sequence.num_left) == (5, 1)
    assert sequence.where == "sample 2, step 2 (position 5)"


@pytest.mark.parametrize(
    ("scoring", "shareable"),
    [(None, 3), (NextToken(4, [9]), 3), (GivenTokens([1, 2, 3, 4, 5], 1), 0), (GivenTokens([1, 2, 3, 4, 5], 3), 2)],
)
def test_a_beginning_is_shared_up_to_the_first_logits_that_are_wanted(
    scoring: NextToken | None, shareable: int
) -> None:
    assert Sequence([1, 2, 3, 4], SamplingParams(), 0, scoring=scoring).num_shareable == shareable


@pytest.mark.parametrize(
    ("asked", "stops", "on_host"),
    [
        ({}, (2,), False),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.9}, (2,), False),
        ({"logprobs": 0}, (2,), True),
        ({"repetition_penalty": 1.1}, (2,), True),
        ({"min_new_tokens": 2}, (2,), True),
        ({"min_new_tokens": 2}, (), False),
    ],
)
def test_what_the_device_cannot_choose_is_chosen_by_the_host(asked: dict, stops: tuple, on_host: bool) -> None:
    sequence = Sequence([1], SamplingParams(**asked), 4, stop_ids=stops)
    assert sequence.on_host == on_host
    assert sequence.logprobs == ([] if "logprobs" in asked else None)


def test_sequences_are_told_apart_by_identity() -> None:
    one, other = (Sequence([1], SamplingParams(), 4) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2
