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
        accepted = next((n for n, pair in enumerate(zip(draft, left, strict=False)) if pair[0] != pair[1]), count)
        one.token_ids += left[: accepted + 1]
        one.num_steps += 1
        one.num_proposed += count
        one.num_accepted += accepted
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


def test_no_more_than_asked_for() -> None:
    assert Ngrams(6).prospect(sequence([5, 6], [5, 6])).most == 6


def test_a_proposer_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="most is 0, wanted at least 1"):
        Ngrams(0)


def test_short_and_long_matches_are_judged_apart_and_without_proposals() -> None:
    rng = random.Random(1)
    text = [rng.randrange(10**6) for _ in range(100)]
    one, ngrams = sequence(text, text[: LONG + 1]), Ngrams()
    long = ngrams.prospect(one).chance
    for n in range(20):
        one.token_ids += [*text[40 + 2 * n :][:2], -n]  # two ids of the prompt, then another than followed them there
    one.token_ids += text[20:22]
    assert ngrams.prospect(one).chance < 0.15 < 0.8 < long
    one.token_ids += text[22 : 20 + LONG]  # a long match, of which one went on and then ended
    assert ngrams.prospect(one).chance > 0.5


def test_a_text_is_judged_once_however_often_and_in_what_pieces_it_is_seen() -> None:
    rng = random.Random(4)
    answer = [rng.randrange(3) for _ in range(60)]
    at_once, piecemeal, ngrams = sequence([0, 1, 2], answer), sequence([0, 1, 2], []), Ngrams()
    for token in answer:
        piecemeal.token_ids.append(token)
        assert ngrams.prospect(piecemeal) == ngrams.prospect(piecemeal)
    assert ngrams.prospect(piecemeal) == ngrams.prospect(at_once) != NOTHING


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
    assert 3 <= one.num_proposed <= 12
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
