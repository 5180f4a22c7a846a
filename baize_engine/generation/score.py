"""Log-probabilities of given tokens, in bounded memory. Token ids only; it holds one sequence and always frees it.

Logits of at most CHUNK rows exist at a time. The chunks end at absolute multiples of it, as those of prompts do, so that
a token's number does not depend on where a prompt ends and a completion begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from baize_engine.generation.sampling import TokenLogprobs, token_logprobs

# Rows of logits at a time: 128 x 32001 in fp32 are 16 MB, and log_softmax needs as much again.
CHUNK = 128


def score_tokens(decoder: Any, cache: Any, ids: Sequence[int], start: int) -> float:
    """The sum of the log-probabilities of ids[start:], each given all ids before it. 0.0 where there are none.

    `start` is at least 1: the first token of a text has nothing before it to be predicted from.
    """
    terms: list[float] = []
    for logits, wanted in _predictions(decoder, cache, ids, start):
        rows = torch.log_softmax(logits, dim=-1)
        terms += rows.gather(1, torch.tensor(wanted, device=logits.device)[:, None])[:, 0].tolist()
    return math.fsum(terms)


def prompt_logprobs(decoder: Any, cache: Any, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Those of ids[1:], each given all ids before it, with the `top` most likely ids there."""
    return [
        token_logprobs(row, token_id, top)
        for logits, wanted in _predictions(decoder, cache, ids, 1)
        for row, token_id in zip(logits, wanted, strict=True)
    ]


def next_token_logprobs(decoder: Any, cache: Any, ids: Sequence[int], candidates: Sequence[int]) -> list[float]:
    """The log-probabilities of `candidates` as the token after `ids`, in their order."""
    with _sequence(cache, len(ids)) as sequence:
        logits = decoder.prefill(list(ids), sequence, cache)  # (1, V)
        row = torch.log_softmax(logits[0].float(), dim=-1)
        wanted = torch.tensor(list(candidates), dtype=torch.int64, device=logits.device)
        found: list[float] = row[wanted].tolist()
    return found


def _predictions(decoder: Any, cache: Any, ids: Sequence[int], start: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Logits (n, V) float32 and the n ids that came there, n at most CHUNK, together those of ids[start:]."""
    if start >= len(ids):
        return
    with _sequence(cache, len(ids) - 1) as sequence:
        begin = (start - 1) // CHUNK * CHUNK
        if begin:  # the chunks whose logits nobody asks for
            decoder.prefill(list(ids[:begin]), sequence, cache)
        for low in range(begin, len(ids) - 1, CHUNK):
            high = min(low + CHUNK, len(ids) - 1)
            logits = decoder.forward(
                [list(ids[low:high])], [sequence], cache, all_logits=True, prompt=True
            )  # (high - low, V)
            first = max(low, start - 1)
            yield logits[first - low :].float(), list(ids[first + 1 : high + 1])


@contextmanager
def _sequence(cache: Any, tokens: int) -> Iterator[Any]:
    """An empty sequence, and room for so many tokens if those who hold it between their calls can give it."""
    sequence = cache.allocate()
    try:
        while cache.needed(sequence, tokens) > cache.free_blocks and cache.make_room():
            pass
        yield sequence
    finally:
        cache.free(sequence)
