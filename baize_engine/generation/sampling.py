"""From rows of logits to token ids and their log-probabilities. Pure: no state, no model, no text.

A draw depends on the logits, the history, the parameters, and (seed, sample index, position): the absolute position of
the token to be drawn. Neighbours in a batch, the time and the order of requests do not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from baize_engine.generation.sequence import Sequence

SampleOp = Callable[..., Tensor]  # `sample` of kernels/reference.py, as the backend has chosen it


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability in the model's own distribution, before bias, penalties, temperature and filters.

    `top` has the k most likely ids with theirs, the most likely first; it is empty for logprobs=0.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose_tokens(logits: Tensor, sequences: list[Sequence], sample: SampleOp) -> list[int]:
    """The next id of each sequence from its row of `logits` (S, V) float32, which stay as they are."""
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
        # int32 as the lengths of a step: one kernel serves both
        column([sequence.num_tokens for sequence in sequences], torch.int32),
    )
    ids: list[int] = drawn.tolist()
    return ids


def token_logprobs(logits: Tensor, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of `token_id`, and of the `top` most likely ids, under `logits` (V,) or (1, V)."""
    logprobs = torch.log_softmax(logits.flatten().float(), dim=-1)
    values, ids = torch.topk(logprobs, min(top, logprobs.numel()))
    return TokenLogprobs(float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
