"""From one row of logits to one token id and its log-probabilities. Pure: no state, no model, no text.

A draw depends on the logits, the history, the parameters, and (seed, sample index, position): the absolute position of
the token to be drawn. Neighbours in a batch, the time and the order of requests do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baize_engine.generation.params import SamplingParams

SampleOp = Callable[..., Tensor]  # `sample` of kernels/reference.py, as the backend has chosen it


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability in the model's own distribution, before penalty, temperature and filters.

    `top` has the k most likely ids with theirs, the most likely first; it is empty for logprobs=0.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose_token(
    logits: Tensor,
    params: SamplingParams,
    history: Sequence[int],
    seed: int,
    sample_index: int,
    position: int,
    sample: SampleOp,
) -> int:
    """Draws one id from `logits` (1, V) fp32, which stay as they are. `history`: all ids so far, the prompt's included."""
    if params.repetition_penalty != 1.0:
        logits = penalise(logits, history, params.repetition_penalty)

    def row(value: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([value], dtype=dtype, device=logits.device)

    drawn = sample(
        logits,
        row(params.temperature, torch.float32),
        row(params.top_k, torch.int64),
        row(params.top_p, torch.float32),
        row(params.min_p, torch.float32),
        row(seed, torch.int64),
        row(sample_index, torch.int64),
        row(position, torch.int64),
    )
    return int(drawn.item())


def penalise(logits: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """A copy of `logits` (1, V) in which each id of `history` once has its logit made less likely.

    Positive logits are divided by `penalty`, negative ones multiplied, as transformers' RepetitionPenaltyLogitsProcessor.
    """
    seen = torch.tensor([sorted(set(history))], dtype=torch.int64, device=logits.device)
    values = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(values < 0, values * penalty, values / penalty))


def token_logprobs(logits: Tensor, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of `token_id`, and of the `top` most likely ids, under `logits` (1, V)."""
    logprobs = torch.log_softmax(logits[0].float(), dim=-1)
    values, ids = torch.topk(logprobs, min(top, logprobs.numel()))
    return TokenLogprobs(float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
