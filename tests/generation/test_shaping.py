"""Shaping: each change by hand and against transformers' processors, their order, and what leaves nothing to draw."""

from __future__ import annotations

import random

import pytest
import torch

from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import choose_tokens
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.shaping import FORBIDDEN, LIMIT, check_choice, shaping
from baize_engine.kernels.reference import sample

V = 12
LOGITS = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5
PROMPT = [4, 0, 4]
ROW = torch.tensor([2.0, -1.0, 0.5, 3.0])


def shaped(
    logits: torch.Tensor, history: list[int], prompt: int = 0, stops: tuple = (), **asked: object
) -> list[float]:
    """By a Shaping, which leaves its input as it was."""
    before, change = logits.clone(), shaping(SamplingParams(**asked), history[:prompt], stops)
    assert change is not None
    found = change.shape(logits, history[prompt:])
    assert torch.equal(logits, before)
    assert torch.equal(change.shape(logits, history[prompt:]), found)
    return found.tolist()


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.7, "top_k": 3}, {"stop_token_ids": [3]}, {"logprobs": 2}])
def test_what_changes_no_logits_needs_no_shaping(asked: dict) -> None:
    assert shaping(SamplingParams(**asked), PROMPT, {2}) is None
    assert shaping(SamplingParams(min_new_tokens=2, ignore_eos=True), PROMPT, ()) is None


def test_the_repetition_penalty_counts_each_id_of_prompt_and_answer_once() -> None:
    assert shaped(ROW, [3, 1, 3], prompt=2, repetition_penalty=2.0) == [2.0, -2.0, 0.5, 1.5]
    assert shaped(ROW, [3, 1, 3], prompt=2, repetition_penalty=0.5) == [2.0, -0.5, 0.5, 6.0]


def test_presence_and_frequency_count_the_answer_alone() -> None:
    history = [2, 2, 0, 3, 0, 0]  # the answer: 3, 0, 0
    assert shaped(ROW, history, prompt=3, presence_penalty=0.5) == [1.5, -1.0, 0.5, 2.5]
    assert shaped(ROW, history, prompt=3, frequency_penalty=0.5) == [1.0, -1.0, 0.5, 2.5]
    assert shaped(ROW, history, prompt=3, presence_penalty=-1.0, frequency_penalty=0.25) == [2.5, -1.0, 0.5, 3.75]
    assert shaped(ROW, history, prompt=6, presence_penalty=1.0) == ROW.tolist()


def test_a_history_that_grows_is_counted_as_one_that_is_given_at_once() -> None:
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.3, frequency_penalty=0.2)
    kept, answer = shaping(params, PROMPT, ()), []
    assert kept is not None
    for token_id in (7, 7, 1, 4, 7):
        fresh = shaping(params, PROMPT, ())
        assert fresh is not None
        assert torch.equal(kept.shape(LOGITS, answer), fresh.shape(LOGITS, answer))
        answer.append(token_id)
    with torch.inference_mode():
        inside = kept.shape(LOGITS.clone(), answer)
    answer.append(2)
    assert not torch.equal(kept.shape(LOGITS, answer), inside)
    fresh = shaping(params, PROMPT, ())
    assert fresh is not None
    assert torch.equal(kept.shape(LOGITS, []), fresh.shape(LOGITS, []))  # a shorter one is counted anew


def test_bias_comes_before_the_penalties() -> None:
    asked = {"logit_bias": {1: 4.0, 3: -4.0}, "repetition_penalty": 2.0, "presence_penalty": 0.25}
    assert shaped(ROW, [1, 3], prompt=1, **asked) == [2.0, 1.5, 0.5, -2.25]


def test_allowed_and_banned() -> None:
    assert shaped(ROW, [], allowed_token_ids=[1, 3]) == [FORBIDDEN, -1.0, FORBIDDEN, 3.0]
    assert shaped(ROW, [], allowed_token_ids=[1, 3], banned_token_ids=[3]) == [FORBIDDEN, -1.0, FORBIDDEN, FORBIDDEN]
    assert shaped(ROW, [], banned_token_ids=[0], logit_bias={0: 1e9}) == [FORBIDDEN, -1.0, 0.5, 3.0]


def test_stop_ids_wait_for_min_new_tokens() -> None:
    beyond = len(ROW) + 5  # a stop id that the vocabulary does not have
    for made, waits in ((0, True), (1, True), (2, False)):
        found = shaped(ROW, [1] * (3 + made), prompt=3, stops=(3, beyond), min_new_tokens=2)
        assert found == [2.0, -1.0, 0.5, FORBIDDEN if waits else 3.0]


@pytest.mark.parametrize("seed", range(20))
def test_all_together_as_transformers_orders_them(seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    rng = random.Random(seed)
    answer = rng.choices(range(V), k=rng.randint(0, 5))
    bias = {i: rng.uniform(-3, 3) for i in rng.sample(range(V), 3)}
    penalty, banned, least = rng.choice([0.8, 1.3]), rng.sample(range(V), 2), rng.randint(1, 4)
    processors = transformers.LogitsProcessorList([
        transformers.SequenceBiasLogitsProcessor({(i,): value for i, value in bias.items()}),
        transformers.RepetitionPenaltyLogitsProcessor(penalty),
        transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), least, [2, 7]),
        transformers.SuppressTokensLogitsProcessor(banned),
    ])  # fmt: skip
    theirs = processors(torch.tensor([PROMPT + answer]), LOGITS[None].clone())[0]
    asked = {
        "logit_bias": bias, "repetition_penalty": penalty, "min_new_tokens": least, "banned_token_ids": banned,
    }  # fmt: skip
    mine = shaped(LOGITS, PROMPT + answer, len(PROMPT), (2, 7), **asked)
    assert mine == theirs.masked_fill(theirs == float("-inf"), FORBIDDEN).tolist()


EXTREMES = [
    {"temperature": 1e-4}, {"temperature": 1e6}, {"temperature": 1e-4, "top_p": 0.5}, {"temperature": 1.0, "top_k": 9},
    {"temperature": 1e6, "min_p": 1e-9}, {"temperature": 0.0}, {"temperature": 1e-30},
]  # fmt: skip


@pytest.mark.parametrize("drawn", EXTREMES, ids=str)
@pytest.mark.parametrize(
    "asked",
    [
        {"allowed_token_ids": [5]},
        {"banned_token_ids": [i for i in range(V) if i != 5]},
        {"logit_bias": {5: -1e9}, "allowed_token_ids": [5], "repetition_penalty": 1e9, "presence_penalty": 1e9},
    ],
    ids=str,
)
def test_what_is_forbidden_never_comes_and_extremes_stay_finite(asked: dict, drawn: dict) -> None:
    params = SamplingParams(**asked, **drawn)
    change = shaping(params, [1], ())
    assert change is not None
    for logits in (LOGITS, LOGITS * 1e30):
        row = change.shape(logits, [5, 5])
        assert bool(torch.isfinite(row).all())
        assert float(row[5]) >= -LIMIT
        draws = [Sequence([1], params, 9, seed, token_ids=[5, 5], shaping=change) for seed in range(50)]
        assert set(choose_tokens(logits.expand(50, V), draws, sample)) == {5}


def test_ids_beyond_the_vocabulary_are_refused_by_name() -> None:
    for field, value in (("logit_bias", {1: 1.0, V: 1.0}), ("allowed_token_ids", [1, V]), ("banned_token_ids", [V])):
        with pytest.raises(RequestError, match=rf"SamplingParams\.{field} has {V}, wanted token ids from 0 to {V - 1}"):
            check_choice(SamplingParams(**{field: value}), V, ())
    check_choice(SamplingParams(logit_bias={V - 1: 1.0}, allowed_token_ids=[0, V - 1], stop_token_ids=[V]), V, (V,))


def test_params_that_leave_nothing_to_draw_are_refused_by_name() -> None:
    for asked in ({"allowed_token_ids": [3, 4], "banned_token_ids": [4, 3]}, {"banned_token_ids": list(range(V))}):
        with pytest.raises(RequestError, match=r"SamplingParams\.banned_token_ids bans every allowed token"):
            check_choice(SamplingParams(**asked), V, (2,))
    for asked in ({"allowed_token_ids": [2, 7]}, {"banned_token_ids": [i for i in range(V) if i not in (2, 7)]}):
        with pytest.raises(RequestError, match=r"SamplingParams\.min_new_tokens is 1, but every allowed token ends"):
            check_choice(SamplingParams(min_new_tokens=1, **asked), V, (2, 7, V + 3))
        check_choice(SamplingParams(**asked), V, (2, 7))
