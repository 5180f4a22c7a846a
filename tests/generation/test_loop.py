"""The decode loop on a decoder without weights: what ends a sample, what it yields, and that its blocks come back."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fake_engine import greedy, loop_over
from fakes import EOS, FakeCache, ScriptDecoder, TableDecoder

from baize_engine.errors import BaizeError
from baize_engine.generation.block_pool import CacheFull
from baize_engine.generation.loop import Loop
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.scoring import GivenTokens, NextToken
from baize_engine.generation.sequence import Sequence, Status
from baize_engine.generation.shaping import Shaping


@dataclass
class Step:
    """A token, and whether it was the last."""

    token_id: int
    finish_reason: str | None
    logprobs: TokenLogprobs | None


def run(
    decoder: TableDecoder,
    cache: FakeCache,
    prompt: list[int],
    params: SamplingParams | None = None,
    max_length: int = 50,
    seed: int = 0,
    sample_index: int = 0,
    stop_ids: Collection[int] = (EOS,),
    sample: Any = greedy,
) -> Generator[Step, None, None]:
    """The steps of one sequence; raises its error."""
    params = params or SamplingParams()
    most = min(params.max_new_tokens, max_length - len(prompt))
    one = Sequence(prompt, params, most, seed, sample_index, stop_ids=stop_ids)
    steps = many(loop_over(decoder, cache, sample=sample), [one])
    with closing(steps):
        for _, step in steps:
            yield step


def many(loop: Loop, sequences: list[Sequence]) -> Generator[tuple[Sequence, Step], None, None]:
    """All tokens as they come; raises a sequence's error, and aborts what is left. All blocks must be free then."""
    loop.add(sequences)
    left, told = len(sequences), dict.fromkeys(sequences, 0)
    try:
        while left:
            for sequence, _, last in loop.step():
                left -= last
                if sequence.error is not None:
                    raise sequence.error
                token = sequence.token_ids[told[sequence]]
                logprobs = None if sequence.logprobs is None else sequence.logprobs[told[sequence]]
                told[sequence] += 1
                yield sequence, Step(token, sequence.finish_reason if last else None, logprobs)
    except BaseException:
        loop.fail()
        raise
    finally:
        assert loop.pool.free_blocks == loop.pool.num_blocks
        assert loop.step() == []
        assert all(sequence.finished and not sequence.block_table for sequence in sequences)


def finish(loop: Loop, sequences: Collection[Sequence]) -> list[Sequence]:
    """Steps until all of them have finished; of whom the outputs were. All blocks must be free then."""
    told = []
    while not all(one.finished for one in sequences):
        told += [sequence for sequence, _, _ in loop.step()]
    assert loop.pool.free_blocks == loop.pool.num_blocks
    return told


def ids(steps: Iterable[Step]) -> list[int]:
    return [step.token_id for step in steps]


def test_the_end_token_stops_and_is_yielded() -> None:
    cache = FakeCache()
    steps = list(run(ScriptDecoder([7, 8, 9], 2), cache, [1, 5]))
    assert [step.token_id for step in steps] == [7, 8, 9, EOS]
    assert [step.finish_reason for step in steps] == [None, None, None, "stop"]


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


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PREFILL, Status.SWAPPED, Status.WAITING])
def test_an_aborted_sequence_gives_its_blocks_back_wherever_it_is(status: Status) -> None:
    loop = loop_over(TableDecoder(), FakeCache(num_blocks=8), max_rows=2)
    sequences = [
        Sequence([1 + n] * length, SamplingParams(), most) for n, length, most in ((0, 2, 19), (1, 2, 19), (2, 20, 9))
    ]
    loop.add(sequences)
    while not (victims := [one for one in sequences[1:] if one.status is status]):
        loop.step()
    loop.abort(victims[0])
    assert (victims[0].finished, victims[0].finish_reason, victims[0].block_table) == (True, "abort", [])
    assert victims[0].swapped is None
    assert victims[0] not in finish(loop, sequences)
    assert [one.finish_reason for one in sequences if one is not victims[0]] == ["length"] * 2


def test_memory_that_runs_out_at_a_swap_ends_all_sequences() -> None:
    cache = FakeCache(num_blocks=8)

    def no_memory(number: int, blocks: object) -> None:
        raise MemoryError

    def forget(number: int) -> None:
        raise AssertionError(f"{number} was never kept")

    cache.swap_out, cache.forget = no_memory, forget  # type: ignore[method-assign]
    loop = loop_over(TableDecoder(), cache, max_rows=2)
    sequences = [Sequence([1 + n] * 2, SamplingParams(), 19) for n in range(2)]
    loop.add(sequences)
    with pytest.raises(MemoryError):
        while True:
            loop.step()
    assert sorted(loop.fail(), key=id) == sorted(sequences, key=id)
    assert all(one.finish_reason == "abort" for one in sequences)


def test_an_error_in_the_decoder_gives_its_blocks_back() -> None:
    cache = FakeCache(num_blocks=2)  # room for 8 positions
    with pytest.raises(CacheFull, match="raise cache_tokens"):
        list(run(ScriptDecoder([7] * 60, 3), cache, [1, 5, 6]))


def test_an_interrupt_gives_its_blocks_back() -> None:
    cache = FakeCache()

    def interrupted(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(TableDecoder(), cache, [1, 5, 6], sample=interrupted))


def test_logits_that_are_not_finite_name_the_step() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    decoder.fail_at = 5
    with pytest.raises(BaizeError, match=r"step 2 \(position 5\): 1 of 40 logits are not finite"):
        list(run(decoder, cache, [1, 5, 6], stop_ids=()))


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


def samples(count: int, **changes: object) -> list[Sequence]:
    params = SamplingParams(max_new_tokens=6, **changes)
    return [Sequence([1, 5 + n], params, 6, n, prompt_index=n) for n in range(count)]


def test_samples_take_turns_and_each_has_its_own_order() -> None:
    cache = FakeCache()
    found: dict[int, list[Step]] = {}
    order = []
    for sample, step in many(loop_over(TableDecoder(), cache, 3), samples(5)):
        found.setdefault(sample.prompt_index, []).append(step)
        order.append(sample.prompt_index)
    for n, one in enumerate(samples(5)):
        assert found[n] == list(run(TableDecoder(), FakeCache(), one.prompt_ids, one.params, stop_ids=()))
    assert order[:6] == [0, 1, 2, 0, 1, 2]


def test_what_hangs_on_a_sample_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as long as the vocabulary: of those that run, not of all thousands that were asked for."""
    shapings: list[weakref.ref[Shaping]] = []

    def noting(*arguments: Any) -> Shaping:
        shaped = Shaping(*arguments)
        shapings.append(weakref.ref(shaped))
        return shaped

    monkeypatch.setattr("baize_engine.generation.loop.shaping", noting)
    most = 0
    for _ in many(loop_over(TableDecoder(), FakeCache(), 3), samples(20, repetition_penalty=1.2)):
        most = max(most, sum(one() is not None for one in shapings))
    assert len(shapings) == 20
    assert most == 3


class Stopper:
    """A text that a stop string ends with the second token."""

    text = ""
    matched: str | None = None

    def push(self, token_id: int | None, last: bool) -> str:
        self.text += "x"
        self.matched = "xx" if len(self.text) == 2 else None
        return "x"


def test_a_sequence_that_its_text_stops_leaves_the_others_alone() -> None:
    cache, sequences = FakeCache(), samples(3)
    sequences[1].text = Stopper()
    assert len(list(many(loop_over(TableDecoder(), cache), sequences))) == 6 + 2 + 6
    assert [len(one.token_ids) for one in sequences] == [6, 2, 6]
    assert [(one.finish_reason, one.stop_reason) for one in sequences] == [
        ("length", None),
        ("stop", "xx"),
        ("length", None),
    ]


def test_samples_of_a_prompt_get_their_first_tokens_from_one_prefill() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    params = SamplingParams(max_new_tokens=3)
    prompt = [1, 5, 6]
    group = [Sequence(prompt, params, 3, index=index) for index in range(4)]
    assert len(list(many(loop_over(decoder, cache), group))) == 12
    assert decoder.calls == [3] + [1] * 4 * 2
    assert cache.moved == ["copied"] * 3


def test_an_error_names_the_sample_and_ends_no_other() -> None:
    decoder, cache = TableDecoder(), FakeCache()
    decoder.fail_at = 5
    params = SamplingParams(max_new_tokens=2)
    sequences = [Sequence([1] * (1 + 4 * n), params, 2, index=1, prompt_index=n) for n in range(2)]
    loop = loop_over(decoder, cache)
    loop.add(sequences)
    finish(loop, sequences)
    assert (sequences[0].error, len(sequences[0].token_ids)) == (None, 2)
    assert (sequences[1].finish_reason, sequences[1].token_ids) == ("error", [])
    assert str(sequences[1].error).startswith("sample 1, step 0 (position 5): 1 of 40 logits are not finite")


def test_a_step_with_a_bad_row_goes_on_with_the_others() -> None:
    decoder = TableDecoder()
    wanted = samples(4)
    list(many(loop_over(decoder, FakeCache()), wanted))
    decoder.fail_at = 8
    sequences = [*samples(2), Sequence([1, 9, 9, 9, 9], SamplingParams(max_new_tokens=6), 6), *samples(4)[2:]]
    loop = loop_over(decoder, FakeCache())
    loop.add(sequences)
    finish(loop, sequences)
    assert "step 3 (position 8)" in str(sequences.pop(2).error)
    assert [one.token_ids[:5] for one in sequences] == [one.token_ids[:5] for one in wanted]
    assert [one.finish_reason for one in sequences] == ["length"] * 4


def test_a_prompt_too_large_for_the_cache_is_its_own_error() -> None:
    loop = loop_over(TableDecoder(), FakeCache(num_blocks=3))
    sequences = [
        Sequence([1, 5], SamplingParams(), 2),
        Sequence([1] * 12, SamplingParams(), 2),
        Sequence([1, 6], SamplingParams(), 2),
    ]
    loop.add(sequences)
    finish(loop, sequences)
    assert [one.finish_reason for one in sequences] == ["length", "error", "length"]
    assert isinstance(sequences[1].error, CacheFull)


def test_sequences_join_a_batch_that_runs() -> None:
    decoder = TableDecoder()
    alone = samples(3)
    for one in alone:
        list(many(loop_over(decoder, FakeCache()), [one]))
    loop, late = loop_over(decoder, FakeCache()), samples(3)
    loop.add(late[:1])
    while len(late[0].token_ids) < 3:
        loop.step()
    decoder.calls.clear()
    loop.add(late[1:])
    finish(loop, late)
    assert [one.token_ids for one in late] == [one.token_ids for one in alone]
    assert decoder.calls.count(2) == 2  # the prompts; all else are single tokens of steps
    assert len(decoder.calls) == 2 + 3 + 2 * 5


def test_sequences_to_be_scored_run_among_others_and_share_beginnings() -> None:
    decoder = TableDecoder()
    stem = [1 + n % 30 for n in range(40)]
    generated, scores = (
        samples(2),
        [NextToken(42, [7, 9]), GivenTokens([*stem, 5, 8], 41), GivenTokens([*stem, 5, 8], 38)],
    )
    scored = [
        Sequence([*stem, 3, 4], SamplingParams(), 0, scoring=scores[0]),
        Sequence([*stem, 5], SamplingParams(), 0, scoring=scores[1]),
        Sequence([*stem, 5], SamplingParams(), 0, scoring=scores[2]),
    ]
    loop = loop_over(decoder, FakeCache())
    loop.add([generated[0], *scored, generated[1]])
    finish(loop, [*generated, *scored])
    assert [one.finish_reason for one in scored] == ["length"] * 3
    wanted = decoder.table[42 % 7, 4].log_softmax(dim=-1)
    assert scores[0].logprobs == pytest.approx([float(wanted[7]), float(wanted[9])])
    assert [len(score.logprobs) for score in scores[1:]] == [1, 4]
    assert scores[1].logprobs == scores[2].logprobs[-1:]
    # the stem once; a prompt whose logits are wanted from position 37 on shares its first 36 tokens alone
    assert sum(calls for calls in decoder.calls) == 42 + 1 + 5 + sum(2 + 5 for _ in generated)
    assert [one.token_ids for one in generated] == [one.token_ids for one in alone(decoder, samples(2))]


def alone(decoder: TableDecoder, sequences: list[Sequence]) -> list[Sequence]:
    for one in sequences:
        list(many(loop_over(decoder, FakeCache()), [one]))
    return sequences


def test_a_score_of_logits_that_are_not_finite_is_its_own_error() -> None:
    decoder = TableDecoder()
    decoder.fail_at = 5
    scores = [GivenTokens([1, 2, 3, 4, 5, 6, 7, 8], 3), GivenTokens([1, 2, 3, 4], 1)]
    scored = [
        Sequence(given, SamplingParams(), 0, scoring=one)
        for given, one in zip(([1, 2, 3, 4, 5, 6, 7], [1, 2, 3]), scores, strict=True)
    ]
    loop = loop_over(decoder, FakeCache())
    loop.add(scored)
    finish(loop, scored)
    assert str(scored[0].error).startswith("a logit after token 4 is not finite; the weights are damaged")
    assert (scored[1].error, len(scores[1].logprobs)) == (None, 3)


def test_no_samples_are_no_steps() -> None:
    assert list(many(loop_over(TableDecoder(), FakeCache()), [])) == []
