"""The decode loop on a decoder without weights: what ends a sample, what it yields, and that its blocks come back."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import pytest
import torch
from fakes import EOS, FakeCache, FakeSteps, ScriptDecoder, TableDecoder

from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.loop import Sample, Step, generate
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.shaping import Shaping
from baize_engine.model.blocks import CacheFull


def greedy(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def run(decoder: TableDecoder, cache: FakeCache, prompt: list[int], **changes: object) -> Generator[Step, None, None]:
    """The steps of one sample."""
    params = changes.pop("params", SamplingParams())
    index, seed, stops = (
        changes.pop(name, other) for name, other in (("sample_index", 0), ("seed", 0), ("stop_ids", {EOS}))
    )
    steps = many(decoder, cache, [Sample(0, index, prompt, params, seed, stops)], **changes)
    with closing(steps):
        for _, step in steps:
            yield step


def many(
    decoder: TableDecoder, cache: FakeCache, samples: list[Sample], **changes: object
) -> Generator[tuple[Sample, Step], None, None]:
    options = {"max_length": 50, "sample": greedy, **changes}
    return generate(decoder, cache, FakeSteps(decoder, cache), samples, **options)


def ids(steps: Iterable[Step]) -> list[int]:
    return [step.token_id for step in steps]


def test_the_end_token_stops_and_is_yielded() -> None:
    cache = FakeCache()
    steps = list(run(ScriptDecoder([7, 8, 9], 2), cache, [1, 5]))
    assert [step.token_id for step in steps] == [7, 8, 9, EOS]
    assert [step.finish_reason for step in steps] == [None, None, None, "stop"]
    assert cache.free_blocks == cache.num_blocks


def test_an_end_token_that_is_not_in_the_stop_ids_is_a_token() -> None:
    steps = run(ScriptDecoder([7], 1), FakeCache(), [1], stop_ids=(), params=SamplingParams(max_new_tokens=4))
    assert ids(steps) == [7, EOS, EOS, EOS]


def test_each_token_is_fed_once() -> None:
    decoder = ScriptDecoder([7] * 10, 3)
    assert len(list(run(decoder, FakeCache(), [1, 5, 6], params=SamplingParams(max_new_tokens=5)))) == 5
    assert decoder.calls == [3, 1, 1, 1, 1]  # the last token needs no logits


@pytest.mark.parametrize(("max_new", "max_length", "count"), [(4, 50, 4), (40, 10, 7), (1, 50, 1), (40, 4, 1)])
def test_length_limits(max_new: int, max_length: int, count: int) -> None:
    cache = FakeCache()
    params = SamplingParams(max_new_tokens=max_new)
    steps = list(run(ScriptDecoder([7] * 60, 3), cache, [1, 5, 6], params=params, max_length=max_length))
    assert len(steps) == count
    assert [step.finish_reason for step in steps] == [None] * (count - 1) + ["length"]
    assert cache.free_blocks == cache.num_blocks


@pytest.mark.parametrize("length", [0, 50, 51])
def test_refuses_a_prompt_without_room(length: int) -> None:
    with pytest.raises(RequestError, match=f"has {length} tokens, wanted 1 to 49"):
        next(run(TableDecoder(), FakeCache(), [3] * length))


def test_an_abandoned_sample_gives_its_blocks_back() -> None:
    cache = FakeCache()
    steps = run(ScriptDecoder([7] * 60, 9), cache, [1] * 9)
    next(steps)
    assert cache.free_blocks < cache.num_blocks
    steps.close()
    assert cache.free_blocks == cache.num_blocks


def test_an_error_in_the_decoder_gives_its_blocks_back() -> None:
    cache = FakeCache(num_blocks=2)  # room for 8 positions
    with pytest.raises(CacheFull, match="raise cache_tokens"):
        list(run(ScriptDecoder([7] * 60, 3), cache, [1, 5, 6]))
    assert cache.free_blocks == cache.num_blocks


def test_an_interrupt_gives_its_blocks_back() -> None:
    cache = FakeCache()

    def interrupted(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(TableDecoder(), cache, [1, 5, 6], sample=interrupted))
    assert cache.free_blocks == cache.num_blocks


def test_logits_that_are_not_finite_name_the_step() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    decoder.fail_at = 5
    with pytest.raises(BaizeError, match=r"step 2 \(position 5\): 1 of 40 logits are not finite"):
        list(run(decoder, cache, [1, 5, 6], stop_ids=()))
    assert cache.free_blocks == cache.num_blocks


def test_logprobs_are_the_models_own() -> None:
    changes = {"repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {7: 9.0}, "banned_token_ids": [8, 9]}
    params = SamplingParams(max_new_tokens=3, logprobs=2, temperature=0.5, top_k=3, min_new_tokens=2, **changes)
    decoder = TableDecoder()
    history = [1, 5]
    for step in run(decoder, FakeCache(), history, params=params, stop_ids=()):
        row = decoder.table[len(history) % 7, history[-1]].log_softmax(dim=-1)
        assert step.logprobs is not None
        assert step.logprobs.logprob == pytest.approx(float(row[step.token_id]), abs=1e-6)
        assert [i for i, _ in step.logprobs.top] == row.topk(2).indices.tolist()
        assert [p for _, p in step.logprobs.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-6)
        history = [*history, step.token_id]


def test_logprobs_only_when_asked() -> None:
    first = next(run(TableDecoder(), FakeCache(), [1, 5]))
    chosen = next(run(TableDecoder(), FakeCache(), [1, 5], params=SamplingParams(logprobs=0)))
    assert first.logprobs is None
    assert chosen.logprobs is not None
    assert chosen.logprobs.top == ()


def test_draws_get_absolute_positions_and_one_seed() -> None:
    seen = []

    def recording(logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append([int(x) for x in rest[4:]])
        return logits.argmax(dim=-1)

    params = SamplingParams(max_new_tokens=3, temperature=1.0)
    list(run(TableDecoder(), FakeCache(), [1, 5], params=params, seed=9, sample_index=4, sample=recording, stop_ids=()))
    assert seen == [[9, 4, 2], [9, 4, 3], [9, 4, 4]]


def samples(count: int, **changes: object) -> list[Sample]:
    params = SamplingParams(max_new_tokens=6, **changes)
    return [Sample(n, 0, [1, 5 + n], params, n, ()) for n in range(count)]


def test_samples_take_turns_and_each_has_its_own_order() -> None:
    cache = FakeCache()
    found: dict[int, list[Step]] = {}
    order = []
    for sample, step in many(TableDecoder(), cache, samples(5), max_rows=3):
        found.setdefault(sample.prompt_index, []).append(step)
        order.append(sample.prompt_index)
    for n, one in enumerate(samples(5)):
        assert found[n] == list(run(TableDecoder(), FakeCache(), list(one.prompt_ids), params=one.params, stop_ids=()))
    assert order[:6] == [0, 1, 2, 0, 1, 2]
    assert cache.free_blocks == cache.num_blocks


def test_what_hangs_on_a_sample_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as long as the vocabulary: of those that run, not of all thousands that were asked for."""
    made: list[weakref.ref[Shaping]] = []

    def noting(*arguments: Any) -> Shaping:
        shaped = Shaping(*arguments)
        made.append(weakref.ref(shaped))
        return shaped

    monkeypatch.setattr("baize_engine.generation.loop.shaping", noting)
    most = 0
    for _ in many(TableDecoder(), FakeCache(), samples(20, repetition_penalty=1.2), max_rows=3):
        most = max(most, sum(one() is not None for one in made))
    assert len(made) == 20
    assert 3 <= most <= 4  # the last to end is still at hand when the next begins


def test_a_sample_that_its_reader_stops_leaves_the_others_alone() -> None:
    cache, made = FakeCache(), [0] * 3
    for sample, _ in many(TableDecoder(), cache, samples(3)):
        made[sample.prompt_index] += 1
        sample.stopped = sample.prompt_index == 1 and made[1] == 2
    assert made == [6, 2, 6]
    assert cache.free_blocks == cache.num_blocks


def test_samples_of_a_prompt_get_their_first_tokens_from_one_prefill() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    params = SamplingParams(max_new_tokens=3)
    group = [Sample(0, index, [1, 5, 6], params, 0, ()) for index in range(4)]
    assert len(list(many(decoder, cache, group))) == 12
    assert decoder.calls == [3] + [1] * 4 * 2
    assert cache.moved == ["copied"] * 3


def test_an_error_names_the_sample() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    decoder.fail_at = 5
    prompts = [Sample(n, 1, [1] * (1 + 4 * n), SamplingParams(max_new_tokens=2), 0, ()) for n in range(2)]
    with pytest.raises(BaizeError, match=r"prompt 1, sample 1, step 0 \(position 5\)"):
        list(many(decoder, cache, prompts))
    assert cache.free_blocks == cache.num_blocks


def test_no_samples_are_no_steps() -> None:
    assert list(many(TableDecoder(), FakeCache(), [])) == []
