"""A model's answers to questions, in their order. A window of questions at a time goes to the engine, which shares prefixes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from baize_engine.engine import Engine
from baize_engine.errors import BackendError, BaizeError, RequestError
from baize_engine.evaluation.questions import Question

# Questions passed at a time. Choices come a window at a time, and a kill repeats a whole one: as many as run together.
# Generations come one by one, and rows are idle only at the end of a window.
CHOICES, GENERATIONS = 64, 1024


@dataclass(frozen=True)
class Answer:
    """What came out for a question.

    outputs: the texts that were generated, or the one option that was chosen. finish_reasons: of each text. logprobs: of each
    option, as the next token. tokens: number generated. error: why there is no answer, the outputs being empty then.
    """

    outputs: list[str]
    finish_reasons: list[str] | None = None
    logprobs: list[float] | None = None
    tokens: int = 0
    error: str | None = None


def answers(engine: Engine, questions: Sequence[Question]) -> Generator[Answer, None, None]:
    """Yields each question's answer, in order, as soon as it and those before it are there.

    The answer is an error where the prompt is too long or logits are not finite; any other error is raised.
    """
    for kind, alike in groupby(questions, _alike):
        asked = list(alike)
        if kind is None:
            yield from (Answer([], error=question.too_long) for question in asked)
            continue
        chooses = bool(kind)
        most = CHOICES if chooses else GENERATIONS
        for begin in range(0, len(asked), most):
            window = asked[begin : begin + most]
            yield from _chosen(engine, window) if chooses else _generated(engine, window)


def _alike(question: Question) -> tuple[str, ...] | None:
    """What questions of a window have in common: group and options where one is chosen, nothing where texts are made.

    None of those that are not asked.
    """
    if question.too_long is not None:
        return None
    return (question.example.group, *question.options) if question.options else ()


def _chosen(engine: Engine, window: Sequence[Question]) -> Iterator[Answer]:
    prompts = [question.ids.tolist() for question in window]
    try:
        found = engine.next_token_logprobs(prompts, window[0].candidates)
    except (BackendError, RequestError):
        raise
    except BaizeError as error:  # names one prompt whose logits are not finite
        if len(window) == 1:
            yield Answer([], error=str(error))
        else:
            for question in window:
                yield from _chosen(engine, [question])
        return
    for question, logprobs in zip(window, found, strict=True):
        yield Answer([question.options[logprobs.index(max(logprobs))]], logprobs=logprobs)


def _generated(engine: Engine, window: Sequence[Question]) -> Iterator[Answer]:
    prompts = [question.ids.tolist() for question in window]
    params = [question.params for question in window]
    for samples in engine.completions(prompts, params, raise_errors=False):
        error = next((each.error for each in samples if each.error is not None), None)
        if error is not None:
            yield Answer([], error=str(error))
        else:
            reasons = [str(each.finish_reason) for each in samples]
            yield Answer([each.text for each in samples], reasons, tokens=sum(len(each.token_ids) for each in samples))
