"""Log-probabilities of given tokens, in bounded memory. Token ids only; it holds one sequence and always frees it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# Rows of logits at a time: 128 x 32001 in fp32 are 16 MB, and log_softmax needs as much again.
CHUNK = 128


def score_tokens(decoder: Any, cache: Any, ids: Sequence[int], start: int) -> float:
    """The sum of the log-probabilities of ids[start:], each given all ids before it. 0.0 where there are none.

    `start` is at least 1: the first token of a text has nothing before it to be predicted from.
    """
    if start >= len(ids):
        return 0.0
    terms: list[float] = []
    with _sequence(cache) as sequence:
        if start > 1:  # the rows whose logits nobody asks for
            decoder.prefill(list(ids[: start - 1]), sequence, cache)
        for low in range(start - 1, len(ids) - 1, CHUNK):
            high = min(low + CHUNK, len(ids) - 1)
            logits = decoder.forward([list(ids[low:high])], [sequence], cache, all_logits=True)  # (high - low, V)
            wanted = torch.tensor(ids[low + 1 : high + 1], dtype=torch.int64, device=logits.device)
            rows = torch.log_softmax(logits.float(), dim=-1)
            terms += rows.gather(1, wanted[:, None])[:, 0].tolist()
    return math.fsum(terms)


def next_token_logprobs(decoder: Any, cache: Any, ids: Sequence[int], candidates: Sequence[int]) -> list[float]:
    """The log-probabilities of `candidates` as the token after `ids`, in their order."""
    with _sequence(cache) as sequence:
        logits = decoder.prefill(list(ids), sequence, cache)  # (1, V)
        row = torch.log_softmax(logits[0].float(), dim=-1)
        wanted = torch.tensor(list(candidates), dtype=torch.int64, device=logits.device)
        found: list[float] = row[wanted].tolist()
    return found


@contextmanager
def _sequence(cache: Any) -> Iterator[Any]:
    sequence = cache.allocate()
    try:
        yield sequence
    finally:
        cache.free(sequence)
