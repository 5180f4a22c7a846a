"""From rows of logits to token ids and their log-probabilities. Pure: no state, no model, no text.

A draw depends on the logits, the history, the parameters, and (seed, sample index, position): the absolute position of
the token to be drawn. Neighbours in a batch, the time and the order of requests do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.shaping import Shaping

SampleOp = Callable[..., Tensor]  # `sample` of kernels/reference.py, as the backend has chosen it


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability in the model's own distribution, before bias, penalties, temperature and filters.

    `top` has the k most likely ids with theirs, the most likely first; it is empty for logprobs=0.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """What choosing a token takes beside its logits, made once for a sample.

    `history`: all ids so far, the prompt's included; the list that grows with the sample. The token's position is its
    length. `shaping`: of shaping.shaping().
    """

    params: SamplingParams
    history: Sequence[int]
    seed: int
    sample_index: int
    shaping: Shaping | None = None


def choose_tokens(logits: Tensor, draws: Sequence[Draw], sample: SampleOp) -> list[int]:
    """One id for each row of `logits` (S, V) float32, which stay as they are."""
    if any(draw.shaping is not None for draw in draws):
        logits = logits.clone()
        for row, draw in enumerate(draws):
            if draw.shaping is not None:
                logits[row] = draw.shaping.shape(logits[row], draw.history)

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    drawn = sample(
        logits,
        column([draw.params.temperature for draw in draws], torch.float32),
        column([draw.params.top_k for draw in draws], torch.int64),
        column([draw.params.top_p for draw in draws], torch.float32),
        column([draw.params.min_p for draw in draws], torch.float32),
        column([draw.seed for draw in draws], torch.int64),
        column([draw.sample_index for draw in draws], torch.int64),
        column([len(draw.history) for draw in draws], torch.int32),  # as the lengths of a step: one kernel serves both
    )
    ids: list[int] = drawn.tolist()
    return ids


def token_logprobs(logits: Tensor, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of `token_id`, and of the `top` most likely ids, under `logits` (V,) or (1, V)."""
    logprobs = torch.log_softmax(logits.flatten().float(), dim=-1)
    values, ids = torch.topk(logprobs, min(top, logprobs.numel()))
    return TokenLogprobs(float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
