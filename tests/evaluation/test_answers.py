"""Answers: in order, whatever the windows; a group's choices in one call, and failures that stop nothing else."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import fake_engine
import pytest
from fakes import VOCAB, TableDecoder

from baize_engine import Engine, SamplingParams
from baize_engine.errors import BackendError, RequestError
from baize_engine.evaluation import answers as module
from baize_engine.evaluation.answers import answers
from baize_engine.evaluation.questions import Question
from baize_engine.evaluation.task import Example

PARAMS = SamplingParams(max_new_tokens=3, ignore_eos=True)


def choice(group: str, *ids: int, options: tuple[str, ...] = ("a", "b")) -> Question:
    return Question(
        Example("x", group), array("i", [1, *ids]), options=options, candidates=tuple(range(50, 50 + len(options)))
    )


def text(*ids: int, params: SamplingParams = PARAMS) -> Question:
    return Question(Example("x", ""), array("i", [1, *ids]), params)


def make(fail_at: int | None = None) -> tuple[Engine, list[int]]:
    """An engine, and the list in which it notes how many prompts it gets together."""
    decoder = TableDecoder(VOCAB)
    decoder.fail_at = fail_at
    engine, calls = fake_engine.make(decoder), []
    scores, completions = engine.next_token_logprobs, engine.completions

    def noting_scores(prompts: Sequence[Any], *rest: Any) -> Any:
        calls.append(len(prompts))
        return scores(prompts, *rest)

    def noting_completions(prompts: Sequence[Any], *rest: Any, **how: Any) -> Any:
        calls.append(len(prompts))
        return completions(prompts, *rest, **how)

    engine.next_token_logprobs, engine.completions = noting_scores, noting_completions  # type: ignore[method-assign]
    return engine, calls


def test_a_groups_choices_are_one_call_and_each_is_the_likeliest_option() -> None:
    asked = (
        [choice("a", n) for n in range(5, 9)] + [choice("b", n) for n in range(5, 7)] + [choice("b", 9, options=("c",))]
    )
    engine, calls = make()
    found = list(answers(engine, asked))
    assert calls == [4, 2, 1]
    for question, answer in zip(asked, found, strict=True):
        (wanted,) = engine.next_token_logprobs([list(question.ids)], question.candidates)
        assert answer.logprobs == wanted
        assert answer.outputs == [question.options[wanted.index(max(wanted))]]
        assert (answer.finish_reasons, answer.tokens, answer.error) == (None, 0, None)
    assert {answer.outputs[0] for answer in found} == {"a", "b", "c"}


def test_texts_are_the_engines() -> None:
    asked = [
        text(5),
        text(6, params=SamplingParams(max_new_tokens=2, n=2, temperature=1.0, seed=1, ignore_eos=True)),
        text(7),
    ]
    engine, calls = make()
    found = list(answers(engine, asked))
    assert calls == [3]
    for question, answer in zip(asked, found, strict=True):
        done = engine.generate([list(question.ids)], question.params)
        assert answer.outputs == [each.text for each in done]
        assert answer.finish_reasons == ["length"] * question.params.n
        assert answer.tokens == question.params.n * question.params.max_new_tokens
        assert (answer.logprobs, answer.error) == (None, None)


def test_windows_change_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [choice("a", n) for n in range(5, 10)] + [text(n) for n in range(5, 10)] + [choice("a", 5)]
    engine, calls = make()
    wanted = list(answers(engine, asked))
    assert calls == [5, 5, 1]
    monkeypatch.setattr(module, "CHOICES", 2)
    monkeypatch.setattr(module, "GENERATIONS", 3)
    calls.clear()
    assert list(answers(engine, asked)) == wanted
    assert calls == [2, 2, 1, 3, 2, 1]


def test_what_fails_is_an_error_and_the_others_are_answered() -> None:
    asked = [choice("a", 5), choice("a", 5, 6), choice("a", 6), text(5), text(5, 6), text(5, 6, 7, 8, 9)]
    wanted = list(answers(make()[0], asked))
    found = list(answers(make(fail_at=3)[0], asked))
    failed = [answer.error is not None for answer in found]
    assert failed == [False, True, False, True, True, False]
    assert [each for each in found if each.error is None] == [
        each for each, bad in zip(wanted, failed, strict=True) if not bad
    ]
    for answer in found:
        if answer.error is not None:
            assert "not finite" in answer.error
            assert answer.outputs == []


def test_what_is_wrong_with_the_engine_is_raised() -> None:
    engine, _ = make()
    engine.close()
    for question in (choice("a", 5), text(5)):
        with pytest.raises(RequestError, match="this engine is closed"):
            list(answers(engine, [question]))
    engine, calls = make()

    def broken(*_: Any) -> Any:
        calls.append(1)
        raise BackendError("the device is gone")

    engine.next_token_logprobs = broken  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="the device is gone"):
        list(answers(engine, [choice("a", 5), choice("a", 6)]))
    assert calls == [1]
