"""Speculation changes nothing for others: who comes, leaves, is scored or fails meanwhile, and who reuses the cache."""

from __future__ import annotations

from contextlib import closing

import decoders
import pytest
import tiny
import torch
from proposers import Garbage, Oracle, Proposals, ask, compare, engine_of, known

from baize_engine import Engine, SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.model.llama import Llama
from baize_engine.model.verify_state import VerifyState

pytestmark = pytest.mark.usefixtures("one_thread")

AHEAD = pytest.mark.parametrize("ahead", [False, True])
STEM = decoders.prompt(40, 99)
PROMPTS = [decoders.prompt(9, 1), [*STEM, 5, 6], decoders.prompt(20, 2), [*STEM, 7], STEM[:33]]
PARAMS = [
    SamplingParams(max_new_tokens=40, temperature=1.0, seed=n, ignore_eos=True, logprobs=None if n % 2 else 1)
    for n in range(len(PROMPTS))
]


def made(quantize: str | None = None) -> Llama:
    return decoders.make(tiny.config(num_key_value_heads=2), torch.float16, quantize)


def alone(model: Llama) -> list[list[int]]:
    """The ids of each prompt's answer by itself, plain."""
    found = [ask(engine_of(model), [ids], [params]) for ids, params in zip(PROMPTS, PARAMS, strict=True)]
    return [answer.token_ids for (answer,) in found]


def oracle(answers: list[list[int]], right: float = 0.8) -> Oracle:
    return Oracle({(n, 0): ids for n, ids in enumerate(answers)}, right)


@AHEAD
def test_sequences_that_speculate_beside_others_that_do_not(ahead: bool) -> None:
    answers, proposer = compare(
        PROMPTS, PARAMS, lambda one: engine_of(made(), one, ahead=ahead, chunk=32),
        lambda answers: Oracle({place: ids for place, ids in known(answers).items() if place[0] % 2}, 0.8),
    )  # fmt: skip
    assert proposer.proposed > proposer.accepted > 0
    assert [answer.token_ids for answer in answers] == alone(made())


@AHEAD
@pytest.mark.parametrize("quantize", [None, "int4"])
def test_sequences_that_come_and_leave(ahead: bool, quantize: str | None) -> None:
    """Of three calls, each begun in the middle of the one before; the second is closed early. Long prompts in chunks."""
    model = made(quantize)
    wanted = alone(model)
    proposer = oracle(wanted)
    engine = engine_of(model, proposer, ahead=ahead, chunk=16)
    calls: list[list[Sequence]] = []
    for begin, end in ((0, 2), (2, 3), (3, 5)):
        whole = engine._checked.sequences(PROMPTS[begin:end], PARAMS[begin:end])
        for sequence in whole:
            sequence.prompt_index += begin  # so that the oracle knows it
        calls.append(whole)
    runs = [engine._serving.run(call) for call in calls]
    for run in runs:
        for _ in range(8):
            next(run)
    runs[1].close()
    for run in (runs[2], runs[0]):
        for _ in run:
            pass
    assert [one.token_ids for call in calls[::2] for one in call] == [wanted[n] for n in (0, 1, 3, 4)]
    (left,) = calls[1]
    assert left.finish_reason == "abort"
    assert left.token_ids == wanted[2][: len(left.token_ids)]
    assert 8 <= len(left.token_ids) < 40
    assert decoders.all_free(engine)
    assert proposer.proposed > proposer.accepted > 0


@AHEAD
def test_scores_beside_sequences_that_speculate(ahead: bool) -> None:
    model = made()
    scored = [[*STEM, 5, 6, 7], [*STEM, 8, 9], decoders.prompt(50, 3)]
    plain = engine_of(model, chunk=16)
    wanted = plain.prompt_logprobs(scored, top=2), plain.next_token_logprobs(scored, [5, 9])
    answers = alone(model)
    engine = engine_of(model, oracle(answers), ahead=ahead, chunk=16)
    sequences = engine._checked.sequences(PROMPTS, PARAMS)
    running = engine._serving.run(sequences)
    next(running)
    first = engine.prompt_logprobs(scored, top=2)
    for _ in range(5):
        next(running)
    assert (first, engine.next_token_logprobs(scored, [5, 9])) == wanted
    for _ in running:
        pass
    assert [one.token_ids for one in sequences] == answers


@pytest.mark.parametrize("tokens", [4096, 256])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_rejected_tokens_leave_no_trace_in_what_later_prompts_reuse(quantize: str | None, tokens: int) -> None:
    """Prompts of whole blocks, so that drafts begin blocks of their own beside the shared ones; then the same once more, and
    longer ones."""
    model = made(quantize)
    prompts = [STEM[:32], STEM[:31], STEM[:17], [*STEM, *decoders.prompt(24, 5)]]
    params = [SamplingParams(max_new_tokens=20, logprobs=1, ignore_eos=True)] * 4
    fresh = [ask(engine_of(model), [ids], [one])[0] for ids, one in zip(prompts, params, strict=True)]
    longer = [ids + answer.token_ids for ids, answer in zip(prompts, fresh, strict=True)]
    after = [ask(engine_of(model), [ids], [one])[0] for ids, one in zip(longer, params, strict=True)]
    garbage = Garbage(most=15)
    engine = engine_of(model, garbage, tokens)
    for _ in range(2):
        for asked, wanted in ((prompts, fresh), (longer, after)):
            got = ask(engine, asked, params)
            assert [(one.token_ids, one.logprobs) for one in got] == [(one.token_ids, one.logprobs) for one in wanted]
    scores = engine_of(model).prompt_logprobs(longer, top=1)
    assert engine.prompt_logprobs(longer, top=1) == scores
    assert garbage.proposed > 500


def test_samples_of_a_prompt_keep_the_block_that_they_share_whole() -> None:
    """n samples of a prompt of whole blocks hold the same blocks; each one's drafts go to its own."""
    model = made()
    prompts, params = [STEM[:32], STEM[:37]], [SamplingParams(max_new_tokens=30, temperature=1.2, seed=3, n=5)] * 2
    answers, proposer = compare(
        prompts, params, lambda one: engine_of(model, one, 1024), lambda answers: Oracle(known(answers), 0.7)
    )
    assert len({tuple(answer.token_ids) for answer in answers}) == 10
    assert proposer.proposed > proposer.accepted > 0


@AHEAD
def test_a_stream_that_is_closed_in_the_middle_of_a_draft(ahead: bool) -> None:
    """Its last step made tokens that nobody reads."""
    model = made()
    wanted = alone(model)
    engine = engine_of(model, oracle(wanted, 1.0), ahead=ahead)
    plain = "".join(engine_of(model).stream(PROMPTS[0], PARAMS[0]))
    for count in (1, 2, 9):
        with closing(engine.stream(PROMPTS[0], PARAMS[0])) as stream:
            text = "".join(next(stream) for _ in range(count))
            assert plain.startswith(text)
        assert decoders.all_free(engine)
    assert "".join(engine.stream(PROMPTS[0], PARAMS[0])) == plain


class Broken(Garbage):
    """Its third draft fails."""

    drafts = 0

    def draft(self, sequence: Sequence, count: int) -> list[int]:
        self.drafts += 1
        if self.drafts == 3:
            raise OSError("the proposer failed")
        return super().draft(sequence, count)


def fails_once(monkeypatch: pytest.MonkeyPatch) -> Proposals:
    """A proposer, beside steps of which the third that verifies fails."""
    run, calls = VerifyState.run, []

    def failing(self: VerifyState, *arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the step failed")
        return run(self, *arguments)

    monkeypatch.setattr(VerifyState, "run", failing)
    return Garbage()


@AHEAD
@pytest.mark.parametrize("of_a_step", [False, True])
def test_an_engine_goes_on_after_a_failure(ahead: bool, of_a_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    wanted = ask(engine_of(model), PROMPTS, PARAMS)
    engine: Engine = engine_of(model, fails_once(monkeypatch) if of_a_step else Broken(), ahead=ahead)
    with pytest.raises(OSError, match="failed"):
        engine.generate(PROMPTS, PARAMS)
    assert decoders.all_free(engine)
    assert ask(engine, PROMPTS, PARAMS) == wanted
