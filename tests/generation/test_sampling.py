"""Sampling: the statistics of draws, what each filter leaves, rows of a batch, log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import choose_tokens, token_logprobs
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.shaping import shaping
from baize_engine.kernels.reference import sample

V = 12
LOGITS = torch.randn(1, V, generator=torch.Generator().manual_seed(3)) * 1.5


def draws(params: SamplingParams, count: int, seed: int = 11, sample_index: int = 0) -> list[int]:
    many = [Sequence([1] * position, params, 1, seed, sample_index) for position in range(count)]
    return choose_tokens(LOGITS.expand(count, V), many, sample)


def chi_square(ids: list[int], probabilities: torch.Tensor) -> float:
    counts = torch.bincount(torch.tensor(ids), minlength=V).double()
    expected = probabilities.double() * len(ids)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_draws_follow_softmax(temperature: float) -> None:
    ids = draws(SamplingParams(temperature=temperature), 3000)
    # 11 degrees of freedom: the 99.9 % point of chi-square is 31.3. The seed is fixed, so this cannot flicker.
    assert chi_square(ids, torch.softmax(LOGITS[0] / temperature, dim=-1)) < 31.3


def test_streams_of_samples_and_seeds_are_independent() -> None:
    params = SamplingParams(temperature=1.0)
    first = draws(params, 400)
    same_chance = float((torch.softmax(LOGITS[0], dim=-1) ** 2).sum())
    for other in (draws(params, 400, sample_index=1), draws(params, 400, seed=12)):
        agree = sum(a == b for a, b in zip(first, other, strict=True))
        spread = math.sqrt(400 * same_chance * (1 - same_chance))
        assert abs(agree - 400 * same_chance) < 4 * spread
    assert draws(params, 400) == first


def renormalised(keep: list[int], temperature: float) -> torch.Tensor:
    p = torch.softmax(LOGITS[0] / temperature, dim=-1)
    mask = torch.zeros(V)
    mask[keep] = 1
    return p * mask / (p * mask).sum()


def test_top_k_keeps_the_k_most_likely() -> None:
    keep = LOGITS[0].topk(3).indices.tolist()
    ids = draws(SamplingParams(temperature=1.3, top_k=3), 1500)
    assert set(ids) == set(keep)
    assert chi_square(ids, renormalised(keep, 1.3)) < 13.8  # 2 degrees of freedom, 99.9 %
    assert len(set(draws(SamplingParams(temperature=3.0, top_k=V + 5), 1500))) == V


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    p, order = torch.softmax(LOGITS[0], dim=-1).sort(descending=True)
    before = p.cumsum(0) - p
    keep = order[before < 0.6].tolist()
    assert 1 < len(keep) < V
    ids = draws(SamplingParams(temperature=1.0, top_p=0.6), 1500)
    assert set(ids) == set(keep)
    assert chi_square(ids, renormalised(keep, 1.0)) < 31.3
    assert set(draws(SamplingParams(temperature=1.0, top_p=1e-6), 20)) == {int(LOGITS.argmax())}


def test_min_p_keeps_what_is_likely_enough_beside_the_best() -> None:
    p = torch.softmax(LOGITS[0], dim=-1)
    keep = torch.nonzero(p >= 0.2 * p.max())[:, 0].tolist()
    assert 1 < len(keep) < V
    assert set(draws(SamplingParams(temperature=1.0, min_p=0.2), 1500)) == set(keep)
    assert set(draws(SamplingParams(temperature=1.0, min_p=1.0), 20)) == {int(LOGITS.argmax())}


def test_greedy_takes_the_best_whatever_the_seed() -> None:
    assert set(draws(SamplingParams(), 10)) == set(draws(SamplingParams(top_k=5), 10, seed=5)) == {int(LOGITS.argmax())}


def test_rows_of_a_batch_are_chosen_as_alone_and_logits_stay() -> None:
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(8))
    before = logits.clone()
    asked = [
        {}, {"temperature": 1.0}, {"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.4},
        {"allowed_token_ids": [3]}, {"temperature": 2.0, "top_p": 0.7, "frequency_penalty": 1.0}, {"min_new_tokens": 4},
    ]  # fmt: skip
    many = []
    for row, one in enumerate(asked):
        params = SamplingParams(**one)
        stops = {int(logits[5].argmax())}
        sequence = Sequence([1, 5], params, 9, 7, row, stop_ids=stops, token_ids=[row, row])
        sequence.shaping = shaping(params, sequence.prompt_ids, stops)
        many.append(sequence)
    ids = choose_tokens(logits, many, sample)
    assert torch.equal(logits, before)
    assert ids == [choose_tokens(logits[row : row + 1], [one], sample)[0] for row, one in enumerate(many)]
    assert ids[0] == int(logits[0].argmax())
    assert ids[3] == 3
    assert ids[5] != int(logits[5].argmax())


def test_log_probabilities_of_the_chosen_and_the_best() -> None:
    wanted = torch.log_softmax(LOGITS[0], dim=-1)
    found = token_logprobs(LOGITS, 5, 3)
    assert found.logprob == pytest.approx(float(wanted[5]))
    assert [i for i, _ in found.top] == wanted.topk(3).indices.tolist()
    assert [x for _, x in found.top] == pytest.approx(wanted.topk(3).values.tolist())
    assert len(token_logprobs(LOGITS, 5, V + 10).top) == V
    assert token_logprobs(LOGITS, 5, 0).top == ()
