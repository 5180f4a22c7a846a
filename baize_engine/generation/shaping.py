"""Shapes logits before the draw, as a request asks: bias, penalties, forbidden tokens. Pure.

In the order of transformers' logits processors and of common API servers:

    logit_bias                        added
    repetition_penalty                ids of prompt and answer: positive logits divided by it, others multiplied
    presence and frequency penalty    ids of the answer: logit - presence - frequency * count
    allowed, banned, min_new_tokens   tokens that may not be drawn get FORBIDDEN

All values stay finite, because later code takes a logit that is not finite for a sign of damaged weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams

LIMIT = 2.0**100  # bound of shaped logits, 1.3e30: divided by the least temperature (1e-4) it is still a float32
FORBIDDEN = -(2.0**101)  # below all shaped logits; at the highest temperature (1e6) still by more than any noise


class Shaping:
    """The changes that `params` makes to the logits of one sample of `prompt_ids`, which ends with one of `stop_ids`.

    `shape` depends only on the logits and the answer so far. Tables that depend on neither are kept, and so are the counts of
    ids, because an answer only grows: recounting 2000 ids for each token took 3 ms.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], stop_ids: Collection[int]) -> None:
        self._params, self._prompt_ids, self._stop_ids = params, prompt_ids, stop_ids
        self._fixed: tuple[Tensor, Tensor, Tensor] | None = None
        self._counts: tuple[Tensor, Tensor] | None = None
        self._counted = 0  # ids of the answer included in _counts

    @torch.inference_mode()  # so that the kept counts are always inference tensors
    def shape(self, logits: Tensor, token_ids: Sequence[int]) -> Tensor:
        """A shaped copy of `logits` (V,) float32. token_ids: the answer so far."""
        params = self._params
        bias, never, ends = self._tables(logits)
        shaped = logits + bias
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
            shaped = self._penalise(shaped, *self._count(token_ids, logits))
        shaped = shaped.clamp_(-LIMIT, LIMIT).masked_fill_(never, FORBIDDEN)
        if len(token_ids) < params.min_new_tokens:
            shaped[ends] = FORBIDDEN
        return shaped

    def _penalise(self, logits: Tensor, in_all: Tensor, in_answer: Tensor) -> Tensor:
        params = self._params
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(in_all > 0, penalised, logits)
        if params.presence_penalty:
            logits = logits - params.presence_penalty * (in_answer > 0)
        if params.frequency_penalty:
            logits = logits - params.frequency_penalty * in_answer
        return logits

    def _tables(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bias (V,) float32, the tokens that may never be drawn (V,) bool, and the ids that end the sample (n,) int64."""
        if self._fixed is None:
            params, bias = self._params, torch.zeros_like(logits)
            values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
            bias[_indices(params.logit_bias, logits)] = values
            never = torch.full(logits.shape, params.allowed_token_ids is not None, device=logits.device)
            never[_indices(params.allowed_token_ids or (), logits)] = False
            never[_indices(params.banned_token_ids, logits)] = True
            # a stop id beyond the vocabulary is never drawn
            self._fixed = bias, never, _indices([i for i in self._stop_ids if i < len(logits)], logits)
        return self._fixed

    def _count(self, token_ids: Sequence[int], logits: Tensor) -> tuple[Tensor, Tensor]:
        """How often each id occurs in prompt and answer, and in the answer alone, both (V,) float32."""
        if self._counts is None or self._counted > len(token_ids):
            answer = torch.zeros(len(logits), device=logits.device)
            self._counts, self._counted = (_add_counts(answer.clone(), self._prompt_ids), answer), 0
        for counts in self._counts:
            _add_counts(counts, token_ids[self._counted :])
        self._counted = len(token_ids)
        return self._counts


def _add_counts(counts: Tensor, ids: Iterable[int]) -> Tensor:
    new = _indices(ids, counts)
    return counts.index_add_(0, new, torch.ones_like(new, dtype=torch.float32))


def _indices(ids: Iterable[int], logits: Tensor) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.int64, device=logits.device)


def is_shaped(params: SamplingParams, stop_ids: Collection[int]) -> bool:
    """Whether `params` changes any logit."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.allowed_token_ids is not None
        or params.banned_token_ids
        or (params.min_new_tokens and stop_ids)
    )


def shaping(params: SamplingParams, prompt_ids: Sequence[int], stop_ids: Collection[int]) -> Shaping | None:
    """The changes that `params` makes, or None if it makes none."""
    return Shaping(params, prompt_ids, stop_ids) if is_shaped(params, stop_ids) else None


def check_choice(params: SamplingParams, vocab_size: int, stop_ids: Collection[int]) -> None:
    """RequestError, naming the field, if an id is not in the vocabulary or no token is left to draw."""
    fields: dict[str, Sequence[int]] = {
        "logit_bias": tuple(params.logit_bias),
        "allowed_token_ids": params.allowed_token_ids or (),
        "banned_token_ids": params.banned_token_ids,
    }
    for field, ids in fields.items():
        for token_id in ids:
            if token_id >= vocab_size:
                raise RequestError(
                    f"SamplingParams.{field} has {token_id}, wanted token ids from 0 to {vocab_size - 1}"
                )
    excluded = set(params.banned_token_ids)
    if not _left(params, vocab_size, excluded):
        raise RequestError("SamplingParams.banned_token_ids bans every allowed token, wanted at least one left to draw")
    if params.min_new_tokens and not _left(params, vocab_size, excluded | set(stop_ids)):
        raise RequestError(
            f"SamplingParams.min_new_tokens is {params.min_new_tokens}, but every allowed token ends the text, "
            "wanted at least one that does not"
        )


def _left(params: SamplingParams, vocab_size: int, excluded: set[int]) -> int:
    """The number of tokens that may be drawn if the ids `excluded` may not."""
    if params.allowed_token_ids is not None:
        return len(set(params.allowed_token_ids) - excluded)
    return vocab_size - sum(token_id < vocab_size for token_id in excluded)
