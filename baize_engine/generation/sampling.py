"""Draws token ids from rows of logits, and computes their log-probabilities. Pure: no state, no model, no text.

A draw depends on the logits, the sequence's tokens, the parameters, and (seed, sample index, position of the token to draw);
never on the rest of the batch, the time or the order of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from baize_engine.generation.sequence import Sequence

SampleOp = Callable[..., Tensor]  # `sample` of kernels/reference.py, in the implementation that the backend chose


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability under the model itself, before bias, penalties, temperature and filters.

    Attributes:
        logprob: the natural logarithm of its probability.
        top: (id, log-probability) of the k likeliest tokens, likeliest first; empty for logprobs=0.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose_tokens(logits: Tensor, sequences: list[Sequence], sample: SampleOp) -> list[int]:
    """The next id of each sequence, drawn from its row of `logits` (S, V) float32, which are not changed."""
    if any(sequence.shaping is not None for sequence in sequences):
        logits = logits.clone()
        for row, sequence in enumerate(sequences):
            if sequence.shaping is not None:
                logits[row] = sequence.shaping.shape(logits[row], sequence.token_ids)

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    drawn = sample(
        logits,
        column([sequence.params.temperature for sequence in sequences], torch.float32),
        column([sequence.params.top_k for sequence in sequences], torch.int64),
        column([sequence.params.top_p for sequence in sequences], torch.float32),
        column([sequence.params.min_p for sequence in sequences], torch.float32),
        column([sequence.seed for sequence in sequences], torch.int64),
        column([sequence.index for sequence in sequences], torch.int64),
        # int32 like the lengths of a step, so that one kernel serves both
        column([sequence.num_tokens for sequence in sequences], torch.int32),
    )
    ids: list[int] = drawn.tolist()
    return ids


def token_logprobs(logits: Tensor, token_id: int, top: int) -> TokenLogprobs:
    """The log-probabilities of `token_id` and of the `top` likeliest ids, under `logits` (V,) or (1, V)."""
    logprobs = torch.log_softmax(logits.flatten().float(), dim=-1)
    values, ids = torch.topk(logprobs, min(top, logprobs.numel()))
    return TokenLogprobs(float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
