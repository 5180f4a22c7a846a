"""Numbers and lists of numpy and torch, wherever ids and counts are taken; True and fractions nowhere."""

from __future__ import annotations

import array

import numpy as np
import pytest
import torch
from fake_engine import make
from fakes import EOS, VOCAB, TableDecoder

from baize_engine import SamplingParams, plain
from baize_engine.errors import RequestError
from baize_engine.options import EngineOptions

IDS = [1, 5, 9]


class Index:
    """Any integer of somebody's."""

    def __index__(self) -> int:
        return 5


ARRAYS = [
    np.array(IDS), np.array(IDS, np.uint8), torch.tensor(IDS), torch.tensor(IDS, dtype=torch.int32),
    array.array("l", IDS), tuple(IDS), [np.int64(1), torch.tensor(5), np.array(9)], [1, Index(), 9],
]  # fmt: skip
FEW = SamplingParams(max_new_tokens=5, ignore_eos=True)


@pytest.mark.parametrize("ids", ARRAYS, ids=lambda ids: type(ids).__name__)
def test_arrays_are_lists_of_ids(ids: object) -> None:
    engine = make(TableDecoder(VOCAB))
    wanted = engine.generate(IDS, FEW)
    assert engine.generate(ids, FEW) == wanted  # type: ignore[arg-type]
    both = engine.generate([ids, IDS], FEW)  # type: ignore[list-item]
    assert [done.token_ids for done in both] == [wanted[0].token_ids] * 2
    assert engine.encode(ids) == IDS  # type: ignore[arg-type]
    assert all(type(token_id) is int for token_id in engine.encode(ids))  # type: ignore[arg-type]
    assert engine.score(ids, [ids, [7]]) == engine.score(IDS, [IDS, [7]])  # type: ignore[arg-type, list-item]
    assert engine.prompt_logprobs(ids, top=np.int32(2)) == engine.prompt_logprobs(IDS, top=2)  # type: ignore[arg-type]
    candidates = engine.next_token_logprobs([IDS], IDS)
    assert engine.next_token_logprobs([ids], ids) == candidates  # type: ignore[arg-type, list-item]
    params = SamplingParams(stop_token_ids=ids, banned_token_ids=ids, allowed_token_ids=ids)  # type: ignore[arg-type]
    assert (params.stop_token_ids, params.banned_token_ids, params.allowed_token_ids) == ((*IDS,),) * 3


def test_tables_of_ids_are_prompts() -> None:
    engine = make(TableDecoder(VOCAB))
    wanted = engine.generate([IDS, [1, 7, 8]], FEW)
    for table in (np.array([IDS, [1, 7, 8]]), torch.tensor([IDS, [1, 7, 8]])):
        assert engine.generate(table, FEW) == wanted  # type: ignore[arg-type]


def test_counts_and_numbers_become_pythons_own() -> None:
    one = SamplingParams(
        max_new_tokens=np.int64(7), n=torch.tensor(2), top_k=Index(), seed=np.uint64(2**63 - 1), logprobs=np.int8(0),
        min_new_tokens=np.array(3), temperature=np.float32(0.5), top_p=torch.tensor(0.5),
        logit_bias={np.int64(5): np.float64(2)},
    )  # type: ignore[arg-type]  # fmt: skip
    assert one == SamplingParams(
        max_new_tokens=7, n=2, top_k=5, seed=2**63 - 1, logprobs=0, min_new_tokens=3, temperature=0.5, top_p=0.5,
        logit_bias={5: 2.0},
    )  # fmt: skip
    values = [one.max_new_tokens, one.n, one.top_k, one.seed, one.logprobs, one.min_new_tokens, *one.logit_bias]
    assert all(type(value) is int for value in values)
    assert all(type(value) is float for value in (one.temperature, one.top_p, one.logit_bias[5]))
    options = EngineOptions(max_model_len=np.int64(64), cache_tokens=np.int32(64))  # type: ignore[arg-type]
    assert [type(value) for value in (options.max_model_len, options.cache_tokens)] == [int, int]
    assert options == EngineOptions(max_model_len=64, cache_tokens=64)


@pytest.mark.parametrize(
    "wrong", [True, np.True_, torch.tensor(True), 5.0, np.float64(5), torch.tensor(5.0), "5", None]
)
def test_what_is_no_integer_is_refused(wrong: object) -> None:
    engine = make(TableDecoder(VOCAB))
    assert plain.integer(wrong) is None
    for call in (
        lambda: engine.generate([[1, wrong]]),
        lambda: engine.score(IDS, [[wrong]]),
        lambda: engine.next_token_logprobs(IDS, [wrong]),
        lambda: engine.prompt_logprobs(IDS, top=wrong),
        lambda: SamplingParams(max_new_tokens=wrong),
        lambda: SamplingParams(stop_token_ids=[wrong]),
        lambda: SamplingParams(logit_bias={wrong: 1.0}),
        lambda: EngineOptions(cache_tokens=True if wrong is None else wrong),
        lambda: EngineOptions(max_model_len=True if wrong is None else wrong),
    ):
        with pytest.raises(RequestError):
            call()


@pytest.mark.parametrize(
    "wrong",
    [np.array([1.0, 5.0]), np.array([True]), torch.tensor([0.5]), b"ab", np.array(5), {1, 5}, np.array([[[1]]])],
    ids=repr,
)
def test_arrays_that_are_no_ids_are_refused(wrong: object) -> None:
    engine = make(TableDecoder(VOCAB))
    for call in (lambda: engine.generate([[1], wrong]), lambda: engine.encode(wrong)):
        with pytest.raises(RequestError):
            call()
    with pytest.raises(RequestError):
        SamplingParams(stop_token_ids=wrong)  # type: ignore[arg-type]


def test_a_prompt_as_long_as_the_context_is_scored() -> None:
    """As `score` takes it; an answer would have no room."""
    engine = make(TableDecoder(VOCAB), max_model_len=20)
    ids = [3 + n for n in range(20)]
    (found,) = engine.prompt_logprobs([ids])
    assert len(found) == 20
    assert sum(each.logprob for each in found[1:] if each) == pytest.approx(engine.score(ids[:1], [ids[1:]])[0])
    with pytest.raises(RequestError, match=r"prompt 0 has 21 tokens, wanted 1 to 20 \(max_model_len\)"):
        engine.prompt_logprobs([[*ids, EOS]])
    assert len(engine.next_token_logprobs([ids], [3])[0]) == 1
    for call in (engine.generate, engine.encode):
        with pytest.raises(RequestError, match=r"has 20 tokens, wanted 1 to 19 \(max_model_len - 1\)"):
            call(ids)
