"""The decode loop of many samples: carries out what the scheduler says, chooses tokens, ends samples. Token ids only; no text.

The samples share the cache and the steps, and none of that shows in what they say. Blocks come back however the loop ends:
finished, abandoned by its reader, or interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import Draw, SampleOp, TokenLogprobs, choose_tokens, token_logprobs
from baize_engine.generation.scheduler import Launch, Prefill, PutBack, Request, Scheduler, TakeOut
from baize_engine.generation.shaping import shaping
from baize_engine.model.kv_cache import CacheFull
from baize_engine.model.runner import Row, not_finite

MAX_ROWS = 64  # samples at a time: up to as many rows a GPU's products have one order of summation

FinishReason = Literal["stop", "length"]


class Decoder(Protocol):
    """What the loop needs of a model: logits (1, V) float32 of the last token, the cache filled on the way."""

    prefill_chunk: int

    def prefill(self, ids: list[int], sequence: Any) -> Tensor: ...


@dataclass(eq=False)
class Sample:
    """One sample to be made: number `index` of prompt number `prompt_index`.

    Samples of one prompt stand next to each other. `stopped`: its reader wants no more of it; to be set when a Step came.
    """

    prompt_index: int
    index: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    seed: int
    stop_ids: Collection[int]
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token. `finish_reason` is None but for the last; "stop" then means that this id is a stop id."""

    token_id: int
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None


def generate(
    decoder: Decoder,
    cache: Any,
    steps: Any,
    samples: Sequence[Sample],
    *,
    max_length: int,
    sample: SampleOp,
    max_rows: int = MAX_ROWS,
) -> Generator[tuple[Sample, Step], None, None]:
    """Yields the tokens that follow each sample's prompt as they come, in the order of each sample, the stop id included.

    A sample ends with a stop id ("stop"), after params.max_new_tokens or at `max_length` tokens with its prompt ("length").
    RequestError: an empty prompt, one that leaves no room, or a cache too small for one sample (CacheFull). BaizeError:
    logits that are not finite, by sample and step. `cache` is a KVCache, `steps` the DecodeSteps over it.
    Between two of its steps the model and the cache may serve others, and what it has in the cache may be taken out
    (`BlockPool.make_room`), to be put back when it goes on; two calls must not run at the same time.
    """
    for one in samples:
        if not 0 < len(one.prompt_ids) < max_length:
            wanted = f"wanted 1 to {max_length - 1} (max_model_len - 1)"
            raise RequestError(f"the prompt has {len(one.prompt_ids)} tokens, {wanted}")
    if not samples:
        return
    loop = _Loop(decoder, cache, samples, max_length, sample, max_rows)
    with steps.batch(min(len(samples), max_rows), loop.choose) as batch:
        cache.tenants.append(loop)
        try:
            yield from loop.run(batch)
        finally:
            cache.tenants.remove(loop)
            loop.scheduler.close()


class _Life:
    """A sample under way: its ids so far and how its next is chosen. `request` has not been in a step yet."""

    def __init__(self, sample: Sample, request: Request) -> None:
        params, prompt = sample.params, sample.prompt_ids
        self.sample, self.request, self.history = sample, request, list(prompt)
        self.most = 1 + request.left  # tokens
        shaped = shaping(params, len(prompt), sample.stop_ids)
        self.draw = Draw(params, self.history, sample.seed, sample.index, shaped)
        self.on_host = params.logprobs is not None or shaped is not None
        self.logprobs: TokenLogprobs | None = None  # of the token that was chosen last
        self.row: Row | None = None
        self.saved: tuple[Tensor, Tensor] | None = None

    def name(self) -> str:
        sample, made = self.sample, len(self.history) - len(self.sample.prompt_ids)
        where = f"prompt {sample.prompt_index}, sample {sample.index}"
        return f"{where}, step {made} (position {len(self.history)})"


class _Loop:
    def __init__(
        self, decoder: Decoder, cache: Any, samples: Sequence[Sample], max_length: int, sample: SampleOp, max_rows: int
    ) -> None:
        self._decoder, self._cache, self._sample = decoder, cache, sample
        self._samples: dict[Request, Sample] = {}
        for one in samples:
            most = min(one.params.max_new_tokens, max_length - len(one.prompt_ids))
            self._samples[Request(one.prompt_ids, one.prompt_index, most - 1)] = one
        # from the first token to the last: tables as long as the vocabulary hang there
        self._lives: dict[Request, _Life] = {}
        self._of_row: dict[Row, _Life] = {}  # those in the batch
        self._arrived: deque[tuple[_Life, int]] = deque()  # tokens that were chosen, and not told yet
        self.scheduler = Scheduler(cache, self._samples, max_rows, decoder.prefill_chunk)

    def run(self, batch: Any) -> Generator[tuple[Sample, Step], None, None]:
        self._batch = batch
        while True:
            while self._arrived:
                yield from self._made(*self._arrived.popleft())
            if batch.in_flight > batch.ahead:
                self._read()
                continue
            try:
                action = self.scheduler.next(batch.in_flight > 0)
            except CacheFull:
                if not self._cache.make_room(self):
                    raise
                continue
            if action is None:
                return
            if isinstance(action, Prefill):
                self._prefill(action)
            elif isinstance(action, Launch):
                batch.launch()
            elif isinstance(action, TakeOut):
                self._take_out(action)
            elif isinstance(action, PutBack):
                self._put_back(self._lives[action.request], action.kept)
            else:
                self._read()

    def give_way(self) -> None:
        """Takes out of the cache all that it has there, between two steps of `run`, which puts it back."""
        while self._batch.in_flight:
            self._read()
        for action in self.scheduler.give_way():
            self._take_out(action)

    def choose(self, rows: Sequence[Row], logits: Tensor) -> list[int]:
        """The tokens of rows in the batch whose parameters ask for the host, from their logits (S, V)."""
        return self._choose([self._of_row[row] for row in rows], logits)

    def _prefill(self, action: Prefill) -> None:
        request = action.request
        ids = list(request.prompt[action.begin : action.end])
        self._cache.reserve(request.cached, len(ids))
        logits = self._decoder.prefill(ids, request.cached)
        ready = []
        for each, copy in self.scheduler.wrote(request):
            if copy is not None:
                self._cache.copy_block(*copy)
            self._lives[each] = life = _Life(self._samples[each], each)
            ready.append(life)
        if ready:
            self._arrived += zip(ready, self._choose(ready, logits.repeat(len(ready), 1)), strict=True)

    def _read(self) -> None:
        """The oldest step's tokens; those of samples that left while it was on its way are nobody's."""
        for row, token in self._batch.read():
            life = self._of_row.get(row)
            if life is not None:
                self.scheduler.read(life.request)
                self._arrived.append((life, token))

    def _choose(self, lives: Sequence[_Life], logits: Tensor) -> list[int]:
        """The one place where the host sees logits (S, V): a token for each row, with its log-probabilities if asked for."""
        for life, bad in zip(lives, (~torch.isfinite(logits)).sum(1).tolist(), strict=True):
            if bad:
                raise BaizeError(
                    f"{life.name()}: {bad} of {logits.shape[1]} logits are not finite; "
                    "the weights are damaged or their values leave this dtype's range"
                )
        tokens = choose_tokens(logits, [life.draw for life in lives], self._sample)
        for row, life, token in zip(logits, lives, tokens, strict=True):
            asked = life.sample.params.logprobs
            life.logprobs = None if asked is None else token_logprobs(row, token, asked)
        return tokens

    def _made(self, life: _Life, token: int) -> Generator[tuple[Sample, Step], None, None]:
        """A sample's next token, and its end if that is one; with its first it joins the steps."""
        if life.request not in self._lives:
            return  # a token of a step that was launched before its end was read
        if token < 0:
            raise not_finite(life.name())
        life.history.append(token)
        reason: FinishReason | None = None
        if token in life.sample.stop_ids:
            reason = "stop"
        elif len(life.history) - len(life.sample.prompt_ids) == life.most:
            reason = "length"
        if reason is not None:
            self._end(life)
        yield life.sample, Step(token, reason, life.logprobs)
        if reason is None and life.sample.stopped:
            self._end(life)
        elif reason is None and life.row is None and life.request.sequence is not None:
            self._join(life)

    def _end(self, life: _Life) -> None:
        self._leave(life)
        del self._lives[life.request]
        self.scheduler.finish(life.request)

    def _join(self, life: _Life) -> None:
        """The sample takes part in the steps from now on."""
        params, sample = life.sample.params, life.sample
        life.row = Row(
            life.request.cached, life.history[-1], life.request.left, tuple(sample.stop_ids), params.temperature,
            params.top_k, params.top_p, params.min_p, sample.seed, sample.index, life.on_host,
        )  # fmt: skip
        self._of_row[life.row] = life
        self._batch.add(life.row)

    def _leave(self, life: _Life) -> None:
        if life.row is not None:
            self._batch.drop(life.row)
            del self._of_row[life.row]
            life.row = None

    def _take_out(self, action: TakeOut) -> None:
        life = self._lives[action.request]
        self._leave(life)
        life.saved = self._cache.take_out(action.blocks)

    def _put_back(self, life: _Life, kept: int) -> None:
        if life.saved is None:
            raise ValueError("nothing was taken out of this request")
        keys, values = life.saved
        blocks = life.request.cached.blocks[kept : keys.shape[1]]
        self._cache.put_back((keys[:, kept:], values[:, kept:]), blocks)
        life.saved = None
        self._join(life)
