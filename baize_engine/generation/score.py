"""Log-probabilities of given tokens, in bounded memory. Token ids only; it holds one sequence and always frees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from baize_engine.generation.sampling import TokenLogprobs, token_logprobs
from baize_engine.model.prompt_runner import PromptRunner


def score_tokens(decoder: PromptRunner, cache: Any, ids: Sequence[int], start: int) -> float:
    """The sum of the log-probabilities of ids[start:], each given all ids before it. 0.0 where there are none.

    `start` is at least 1: the first token of a text has nothing before it to be predicted from.
    """
    terms: list[float] = []

    def take(position: int, logits: Tensor) -> None:
        wanted = torch.tensor(ids[position + 1 : position + 1 + len(logits)], device=logits.device)
        terms.extend(torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0].tolist())

    _run(decoder, cache, ids, start, take)
    return math.fsum(terms)


def prompt_logprobs(decoder: PromptRunner, cache: Any, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Those of ids[1:], each given all ids before it, with the `top` most likely ids there."""
    found: list[TokenLogprobs] = []

    def take(position: int, logits: Tensor) -> None:
        found.extend(token_logprobs(row, ids[position + 1 + n], top) for n, row in enumerate(logits))

    _run(decoder, cache, ids, 1, take)
    return found


def next_token_logprobs(
    decoder: PromptRunner, cache: Any, ids: Sequence[int], candidates: Sequence[int]
) -> list[float]:
    """The log-probabilities of `candidates` as the token after `ids`, in their order."""
    with _sequence(cache, len(ids)) as sequence:
        logits = decoder.prefill(list(ids), sequence)  # (1, V)
        row = torch.log_softmax(logits[0].float(), dim=-1)
        wanted = torch.tensor(list(candidates), dtype=torch.int64, device=logits.device)
        found: list[float] = row[wanted].tolist()
    return found


def _run(
    decoder: PromptRunner, cache: Any, ids: Sequence[int], start: int, take: Callable[[int, Tensor], None]
) -> None:
    """Gives `take` the logits from which ids[start:] come, and their positions."""
    if start < len(ids):
        with _sequence(cache, len(ids) - 1) as sequence:
            decoder.prefill_logits(list(ids[:-1]), sequence, start - 1, take)


@contextmanager
def _sequence(cache: Any, tokens: int) -> Iterator[Any]:
    """An empty sequence, and room for so many tokens if those who hold it between their calls can give it."""
    sequence = cache.allocate()
    try:
        while cache.needed(sequence, tokens) > cache.free_blocks and cache.make_room():
            pass
        cache.reserve(sequence, tokens)
        yield sequence
    finally:
        cache.free(sequence)
