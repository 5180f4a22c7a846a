"""What a request changes in the model's logits before the draw: bias, penalties, tokens that must not come. Pure.

In this order, which is that of transformers' processors and of the common API's servers:

    logit_bias                        added
    repetition_penalty                ids of prompt and answer: positive logits divided by it, others multiplied
    presence and frequency penalty    ids of the answer: logit - presence - frequency * count
    allowed, banned, min_new_tokens   what must not come gets FORBIDDEN

All values stay finite, because a logit that is not finite is the sign of a damaged model to everything downstream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams

LIMIT = 2.0**100  # of shaped logits: 1.3e30, and divided by the least temperature (1e-4) still a float32
FORBIDDEN = -(2.0**101)  # below all of them, at the highest temperature (1e6) by more than any noise


class Shaping:
    """The changes that `params` asks for, for one sample: its prompt has `prompt_length` tokens, `stop_ids` end it.

    `shape` is a function of the logits and the history; tensors that depend on neither are kept from call to call.
    """

    def __init__(self, params: SamplingParams, prompt_length: int, stop_ids: Collection[int]) -> None:
        self._params, self._prompt_length, self._stop_ids = params, prompt_length, stop_ids
        self._fixed: tuple[Tensor, Tensor] | None = None  # bias (V,) float32 and tokens that never may come (V,) bool

    def shape(self, logits: Tensor, history: Sequence[int]) -> Tensor:
        """The changed copy of `logits` (V,) float32. `history`: all ids so far, the prompt's included."""
        params, answer = self._params, history[self._prompt_length :]
        bias, never = self._tables(logits)
        shaped = logits + bias
        if params.repetition_penalty != 1.0:
            seen = self._indices(set(history), logits)
            values = shaped[seen]
            shaped[seen] = torch.where(
                values < 0, values * params.repetition_penalty, values / params.repetition_penalty
            )
        if answer and (params.presence_penalty or params.frequency_penalty):
            counts = Counter(answer)
            times = torch.tensor([counts[i] for i in sorted(counts)], dtype=torch.float32, device=logits.device)
            shaped[self._indices(counts, logits)] -= params.presence_penalty + params.frequency_penalty * times
        shaped = shaped.clamp_(-LIMIT, LIMIT).masked_fill_(never, FORBIDDEN)
        if len(answer) < params.min_new_tokens:
            shaped[self._indices(self._stop_ids, logits)] = FORBIDDEN
        return shaped

    def _tables(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self._fixed is None:
            bias = torch.zeros_like(logits)
            for token_id, value in self._params.logit_bias.items():
                bias[token_id] = value
            allowed = self._params.allowed_token_ids
            never = torch.full(logits.shape, allowed is not None, device=logits.device)
            if allowed is not None:
                never[self._indices(allowed, logits)] = False
            never[self._indices(self._params.banned_token_ids, logits)] = True
            self._fixed = bias, never
        return self._fixed

    @staticmethod
    def _indices(ids: Collection[int], logits: Tensor) -> Tensor:
        """In order and each once; a stop id may lie beyond the vocabulary, where it ends nothing."""
        known = sorted(i for i in set(ids) if i < len(logits))
        return torch.tensor(known, dtype=torch.int64, device=logits.device)


def shaping(params: SamplingParams, prompt_length: int, stop_ids: Collection[int]) -> Shaping | None:
    """The changes to make, or None where `params` asks for none."""
    nothing = (
        not params.logit_bias
        and params.repetition_penalty == 1.0
        and not params.presence_penalty
        and not params.frequency_penalty
        and params.allowed_token_ids is None
        and not params.banned_token_ids
        and not (params.min_new_tokens and stop_ids)
    )
    return None if nothing else Shaping(params, prompt_length, stop_ids)


def check_choice(params: SamplingParams, vocab_size: int, stop_ids: Collection[int]) -> None:
    """RequestError, by name, where an id is not in the vocabulary or no token may come."""
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
        raise RequestError("SamplingParams.banned_token_ids has every token that may come, wanted one left to draw")
    if params.min_new_tokens and not _left(params, vocab_size, excluded | set(stop_ids)):
        raise RequestError(
            f"SamplingParams.min_new_tokens is {params.min_new_tokens}, and every token that may come ends the text, "
            "wanted another one allowed and not banned"
        )


def _left(params: SamplingParams, vocab_size: int, excluded: set[int]) -> int:
    """How many tokens may come."""
    if params.allowed_token_ids is not None:
        return len(set(params.allowed_token_ids) - excluded)
    return vocab_size - sum(token_id < vocab_size for token_id in excluded)
