"""Prompt lookup as a Proposer: what it proposes for a sequence as that grows, and how it learns."""

from __future__ import annotations

import random

import pytest
from fake_engine import loop_over
from fakes import FakeCache, ScriptDecoder

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.ngram import LONG, SPECULATE_TOKENS, Ngrams
from baize_engine.generation.speculation.pace import allot
from baize_engine.generation.speculation.proposer import NOTHING, Proposer
from baize_engine.generation.speculation.state import Speculation
from baize_engine.model.step_costs import step_costs


def sequence(prompt: list[int], answer: list[int], max_tokens: int = 100) -> Sequence:
    one = Sequence(prompt, SamplingParams(), max_tokens)
    one.token_ids += answer
    return one


def replay(prompt: list[int], answer: list[int], proposer: Proposer) -> Sequence:
    """A sequence that a model gives this answer, by steps that verify what is proposed; counted on the sequence."""
    one, costs = sequence(prompt, answer[:1], len(answer)), step_costs("float16", on_gpu=False)
    while len(one.token_ids) < len(answer):
        (count,) = allot([proposer.prospect(one)], 1, 63, costs, proposer.token_cost)
        (draft,) = proposer.propose([(one, count)])
        assert len(draft) == count
        assert set(draft) <= {*prompt, *one.token_ids}
        left = answer[len(one.token_ids) :]
        accepted = next((n for n, token in enumerate(draft) if token != left[n]), count)
        one.token_ids += left[: accepted + 1]
        one.num_steps += 1
        one.num_proposed += count
        one.num_accepted += accepted
        if count:
            proposer.verified(one, count, accepted)
    return one


def test_what_followed_last_time_is_proposed_and_grows_with_the_text() -> None:
    one, ngrams = sequence([1, 2, 3, 4, 5, 1, 2], []), Ngrams()
    assert ngrams.prospect(one).most == SPECULATE_TOKENS
    assert ngrams.propose([(one, 3)]) == [[3, 4, 5]]
    one.token_ids += [9, 9]
    assert ngrams.prospect(one) == NOTHING
    assert ngrams.propose([(one, 3)]) == [[]]
    one.token_ids += [7, 1, 2, 9]
    assert ngrams.prospect(one).most == SPECULATE_TOKENS
    assert ngrams.propose([(one, 5), (one, 0)]) == [[9, 7, 1, 2, 9], []]


def test_samples_of_a_prompt_have_texts_of_their_own() -> None:
    prompt, ngrams = [1, 2, 3, 1], Ngrams()
    one, other = sequence(prompt, [2]), sequence(prompt, [3])
    assert ngrams.prospect(one) != NOTHING
    assert ngrams.prospect(other) == NOTHING
    assert ngrams.propose([(other, 2), (one, 2)]) == [[], [3, 1]]
    assert prompt == [1, 2, 3, 1]


@pytest.mark.parametrize(("max_tokens", "most"), [(2, 0), (3, 0), (4, 1), (8, 5), (9, 6), (90, 6)])
def test_no_more_than_asked_for_and_than_the_answer_has_left(max_tokens: int, most: int) -> None:
    """A step makes one token more than it accepts, so that nothing is proposed for the last."""
    one = sequence([5, 6], [5, 6], max_tokens)
    assert Ngrams(6).prospect(one).most == most


def test_a_proposer_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="most is 0, wanted at least 1"):
        Ngrams(0)


def test_short_and_long_matches_are_judged_apart() -> None:
    rng = random.Random(1)
    text = [rng.randrange(10**6) for _ in range(40)]
    short, long = sequence(text, text[:2]), sequence(text, text[:LONG])
    ngrams = Ngrams()
    at_first = ngrams.prospect(short).chance
    assert at_first < ngrams.prospect(long).chance
    for one in (short, long):
        for _ in range(20):
            ngrams.verified(one, 1, 0)
        assert ngrams.prospect(one).chance < 0.1
    short.token_ids += text[2:LONG]  # its first long match, after many failures of short ones
    assert ngrams.prospect(short).chance > at_first


def test_a_quote_is_followed_by_whole_drafts_and_what_is_new_by_none() -> None:
    rng = random.Random(2)
    prompt = [rng.randrange(32000) for _ in range(400)]
    own = [32000 + n for n in range(200)]
    one = replay(prompt, own + prompt[100:300] + own[:1], Ngrams())
    assert one.token_ids == own + prompt[100:300] + own[:1]
    assert one.num_steps < len(own) + 200 / 6
    assert one.num_accepted >= 0.9 * one.num_proposed > 150


def test_words_that_are_never_followed_by_the_same_cost_few_rows() -> None:
    """Each pair of ids has occurred, and is followed by another id than before."""
    rng = random.Random(3)
    answer = [0]
    seen: dict[tuple[int, ...], set[int]] = {}
    while len(answer) < 2000:
        pair = tuple(answer[-2:])
        token = rng.choice([n for n in range(60) if n not in seen.setdefault(pair, set())])
        seen[pair].add(token)
        answer.append(token)
    one = replay([1, 2, 3], answer, Ngrams())
    assert 20 < one.num_proposed < 0.06 * len(answer)  # a row more costs 13 % of a step
    assert one.num_accepted == 0


def test_the_state_ends_with_the_sequence() -> None:
    loop = loop_over(ScriptDecoder([7, 8, 9], prompt_length=2), FakeCache())
    one = Sequence([3, 4], SamplingParams(), 3)
    one.speculation = Speculation()
    loop.add([one])
    while not one.finished:
        loop.step()
    assert one.token_ids == [7, 8, 9]
    assert one.speculation is None
