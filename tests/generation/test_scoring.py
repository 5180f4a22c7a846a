"""What is taken from logits: the same numbers however they are cut, and whether all are finite."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from fake_engine import make
from fakes import VOCAB, TableDecoder

from baize_engine.errors import BaizeError
from baize_engine.generation.scoring import Endings, GivenTokens, NextToken

V = 31
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
LOGITS = torch.randn(len(IDS) - 1, V, generator=torch.Generator().manual_seed(1)) * 5


def given(start: int, cuts: list[int], top: int = 0) -> GivenTokens:
    """Taken in slices that begin at `cuts`, from the first position that is wanted."""
    score = GivenTokens(IDS, start, top)
    places = [score.first, *(cut for cut in cuts if cut > score.first), len(LOGITS)]
    for begin, end in pairwise(places):
        score.take(begin, LOGITS[begin:end])
    return score


@pytest.mark.parametrize("start", [1, 2, 5, 10])
def test_given_tokens_are_those_after_each_position(start: int) -> None:
    wanted = LOGITS.log_softmax(-1)
    score = given(start, [], top=3)
    assert [one.logprob for one in score.logprobs] == [float(wanted[n - 1, IDS[n]]) for n in range(start, len(IDS))]
    for n, one in enumerate(score.logprobs, start):
        values, ids = wanted[n - 1].topk(3)
        assert one.top == tuple(zip(ids.tolist(), values.tolist(), strict=True))
    assert score.total() == math.fsum(one.logprob for one in score.logprobs)
    assert given(start, []).logprobs[0].top == ()


@pytest.mark.parametrize("cuts", [[1], [4, 5, 9], list(range(10))])
def test_slices_change_no_bit(cuts: list[int]) -> None:
    assert given(1, cuts, top=2).logprobs == given(1, [], top=2).logprobs
    assert given(4, cuts, top=2).logprobs == given(1, [], top=2).logprobs[3:]


def test_more_of_the_likeliest_than_there_are_tokens_are_all() -> None:
    assert len(given(10, [], top=V + 5).logprobs[0].top) == V


@pytest.mark.parametrize("cuts", [[], [4, 9]])
def test_endings_are_given_tokens_of_each_text(cuts: list[int]) -> None:
    texts = [(IDS, 5), ([*IDS[:-1], 7], 3), ([*IDS[:-1], 1], len(IDS) - 1), (IDS, 5)]
    score = Endings(texts, top=2)
    assert (score.first, score.prompt_ids) == (2, IDS[:-1])
    for begin, end in pairwise([2, *cuts, len(LOGITS)]):
        score.take(begin, LOGITS[begin:end])
    for (ids, start), found in zip(texts, score.of_each(), strict=True):
        alone = GivenTokens(ids, start, top=2)
        alone.take(start - 1, LOGITS[start - 1 :])
        assert found == alone.logprobs


def test_candidates_in_the_order_given() -> None:
    score = NextToken(8, [9, 4, 9])
    assert score.first == 7
    score.take(7, LOGITS[:1])
    wanted = LOGITS[0].log_softmax(-1)
    assert score.logprobs == [float(wanted[9]), float(wanted[4]), float(wanted[9])]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_noted(value: float) -> None:
    bad = LOGITS.clone()
    bad[4, 0] = value
    score = GivenTokens(IDS, 1)
    score.take(0, bad[:4])
    assert score.not_finite is None
    score.take(4, bad[4:6])
    assert score.not_finite == 4
    bad[8, 1] = value
    score.take(6, bad[6:])
    assert score.not_finite == 4
    within = GivenTokens(IDS, 3)
    within.take(2, bad[2:])
    assert within.not_finite == 4
    last = NextToken(5, [3])
    last.take(4, bad[4:5])
    assert last.not_finite == 4


def test_an_error_names_the_prompt_or_the_completion_and_the_token() -> None:
    decoder = TableDecoder(VOCAB)
    decoder.fail_at = 4  # the logits after this many tokens
    engine = make(decoder)
    ending = "after token 3 is not finite; the weights are damaged or their values leave this dtype's range$"
    with pytest.raises(BaizeError, match=f"^completion 1: a logit {ending}"):
        engine.score([5, 6], [[7], [7, 8, 9], [8]])
    with pytest.raises(BaizeError, match=f"^prompt 2: a logit {ending}"):
        engine.prompt_logprobs([[5, 6, 7], [5], [5, 6, 7, 8, 9, 10]])
    with pytest.raises(BaizeError, match=f"^prompt 1: a logit {ending}"):
        engine.next_token_logprobs([[5, 6, 7], [5, 6, 7, 8], [5]], [3])
    with pytest.raises(BaizeError, match=f"^pair 2: a logit {ending}"):
        list(engine.continuation_logprobs([([5], [6]), ([5], [7]), ([5, 6, 7], [8, 9])]))
