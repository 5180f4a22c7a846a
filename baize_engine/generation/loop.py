"""The decode loop of one sample: prefill, then choose, stop or step on. Token ids only; no text, no tokenizer.

It holds one sequence of the cache and gives its blocks back however it ends: finished, abandoned by its reader, or
interrupted. A scheduler that runs many samples together can take its place without a change above or below.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import Draw, SampleOp, TokenLogprobs, choose_tokens, token_logprobs
from baize_engine.generation.shaping import shaping
from baize_engine.model.steps import DecodeSteps, Row

FinishReason = Literal["stop", "length"]


class Decoder(Protocol):
    """What the loop needs of a model: logits (1, V) fp32 of the last token, the cache filled on the way."""

    def prefill(self, ids: list[int], sequence: Any, cache: Any) -> Tensor: ...

    def forward(self, token_ids: list[list[int]], sequences: list[Any], cache: Any) -> Tensor: ...


class Cache(Protocol):
    """The part of KVCache that the loop uses itself."""

    def allocate(self) -> Any: ...

    def free(self, sequence: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token. `finish_reason` is None but for the last; "stop" then means that this id is a stop id."""

    token_id: int
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None


def generate(
    decoder: Decoder,
    cache: Cache,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    seed: int,
    sample_index: int,
    stop_ids: Collection[int],
    max_length: int,
    sample: SampleOp,
    steps: DecodeSteps | None = None,
) -> Generator[Step, None, None]:
    """Yields the tokens that follow `prompt_ids`, the stop id included, until one of

    a stop id ("stop"), params.max_new_tokens, or `max_length` tokens with the prompt ("length").
    RequestError: an empty prompt, or one that leaves no room. BaizeError: logits that are not finite, by step.
    With `steps` the device runs by itself after the first token, unless the host is asked for what it alone computes
    (log-probabilities, penalties and what else `shaping` changes).
    """
    if not 0 < len(prompt_ids) < max_length:
        raise RequestError(f"the prompt has {len(prompt_ids)} tokens, wanted 1 to {max_length - 1} (max_model_len - 1)")
    last = min(params.max_new_tokens, max_length - len(prompt_ids)) - 1
    history = list(prompt_ids)
    shaped = shaping(params, len(history), stop_ids)
    draw = Draw(params, history, seed, sample_index, shaped)
    sequence = cache.allocate()
    try:
        logits = decoder.prefill(list(prompt_ids), sequence, cache)
        for step in range(last + 1):
            _check_finite(logits, step, len(history))
            (token_id,) = choose_tokens(logits, [draw], sample)
            logprobs = None if params.logprobs is None else token_logprobs(logits, token_id, params.logprobs)
            history.append(token_id)
            if token_id in stop_ids:
                yield Step(token_id, "stop", logprobs)
                return
            if step == last:
                yield Step(token_id, "length", logprobs)
                return
            yield Step(token_id, None, logprobs)
            if steps is not None and params.logprobs is None and shaped is None:
                row = Row(
                    sequence, token_id, last, tuple(stop_ids), params.temperature, params.top_k, params.top_p,
                    params.min_p, seed, sample_index,
                )  # fmt: skip
                yield from _ahead(steps, row)
                return
            logits = decoder.forward([[token_id]], [sequence], cache)
    finally:
        cache.free(sequence)


def _ahead(steps: DecodeSteps, row: Row) -> Generator[Step, None, None]:
    """The rest of a sample, by the device."""
    with closing(steps.run([row])) as run:
        for made, (token_id,) in enumerate(run, 1):
            if token_id in row.stop_ids:
                yield Step(token_id, "stop", None)
            else:
                yield Step(token_id, "length" if made == row.left else None, None)


def _check_finite(logits: Tensor, step: int, position: int) -> None:
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise BaizeError(
            f"step {step} (position {position}): {bad} of {logits.numel()} logits are not finite; "
            "the weights are damaged or their values leave this dtype's range"
        )
