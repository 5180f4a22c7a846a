"""What a call's sequences give as they run: completions in the order of the prompts, pieces of text, scores; or their errors.

`Engine` makes the sequences and hands them on. Knows no model, no tokenizer and no arguments of calls.
"""

from __future__ import annotations

from collections import Counter, abc, deque
from contextlib import aclosing, closing
from itertools import groupby
from operator import attrgetter

from baize_engine.completion import Completion
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.scoring import Endings
from baize_engine.generation.sequence import Scoring, Sequence
from baize_engine.generation.serving import Serving


def completions(
    serving: Serving, sequences: list[Sequence], raise_errors: bool
) -> abc.Generator[list[Completion], None, None]:
    """Yields each prompt's completions as soon as they and those of earlier prompts have finished."""
    with closing(_finished(serving, sequences, raise_errors)) as finished:
        for samples in finished:
            yield [Completion.of(sample) for sample in samples]


def endings(
    serving: Serving, sequences: list[Sequence], scores: list[Endings]
) -> abc.Generator[list[TokenLogprobs], None, None]:
    """Yields the log-probabilities of each text of `scores`, one of them for each sequence, as soon as it can."""
    with closing(_finished(serving, sequences, raise_errors=True, what="pair")) as finished:
        for score, _ in zip(scores, finished, strict=True):
            yield from score.of_each()


def pieces(serving: Serving, sequences: list[Sequence]) -> abc.Generator[tuple[int, int, str], None, None]:
    """Yields (prompt index, sample index, piece) of the texts as they are generated."""
    with closing(serving.run(sequences)) as outputs:
        for sequence, piece, last in outputs:
            if piece:
                yield sequence.prompt_index, sequence.index, piece
            if last:
                raise_error(sequence)


def texts(serving: Serving, sequences: list[Sequence]) -> abc.Generator[str, None, None]:
    """`pieces` without the indices, for a single sequence."""
    with closing(pieces(serving, sequences)) as found:
        for _, _, piece in found:
            yield piece


async def atexts(serving: Serving, sequences: list[Sequence]) -> abc.AsyncGenerator[str, None]:
    """`texts` for a coroutine."""
    async with aclosing(serving.arun(sequences)) as outputs:
        async for sequence, piece, last in outputs:
            if piece:
                yield piece
            if last:
                raise_error(sequence)


def score(serving: Serving, sequences: list[Sequence], what: str = "prompt") -> None:
    """Runs the sequences together, for their scoring. what: what errors call one of them."""
    with closing(serving.run(sequences)) as outputs:
        for sequence, _, last in outputs:
            if last:
                raise_error(sequence, what)


def scored(prompt_ids: list[int], scoring: Scoring, number: int) -> Sequence:
    """A sequence that is only scored and generates nothing."""
    return Sequence(prompt_ids, SamplingParams(), 0, prompt_index=number, scoring=scoring)


def raise_error(sequence: Sequence, what: str = "prompt") -> None:
    """Raises the error that ended the sequence, if any. Errors of the model get the index of the prompt."""
    # the traceback refers to the sequence, which must not refer to the error
    error, sequence.error = sequence.error, None
    try:
        if isinstance(error, RequestError):
            raise error
        if error is not None:
            between = ", " if sequence.scoring is None else ": "
            raise BaizeError(f"{what} {sequence.prompt_index}{between}{error}") from error
    finally:
        del error


def _finished(
    serving: Serving, sequences: list[Sequence], raise_errors: bool, what: str = "prompt"
) -> abc.Generator[list[Sequence], None, None]:
    """Runs the sequences. Yields those of each prompt as soon as they and those of earlier prompts have finished."""
    left = deque([list(group) for _, group in groupby(sequences, attrgetter("prompt_index"))])
    # counted by outputs: a sequence that has finished may have been aborted by another thread
    unfinished = Counter(sequence.prompt_index for sequence in sequences)
    with closing(serving.run(sequences)) as outputs:
        for sequence, _, last in outputs:
            if last and raise_errors:
                raise_error(sequence, what)
            unfinished[sequence.prompt_index] -= last
            while left and not unfinished[left[0][0].prompt_index]:
                serving.check()
                yield left.popleft()
