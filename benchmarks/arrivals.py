"""Times of arrival of tokens from `Engine.stream_many`, the loop that users run, by the host's clock.

Knows a model and its cache; no benchmark, no files and no peers.
"""

from __future__ import annotations

import time
from collections import abc
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from baize_engine import Engine, SamplingParams
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.loaded_model import LoadedModel
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece, PromptRunner, new_cache
from baize_engine.model.runner import Batch
from baize_engine.text.incremental import Rules

GREEDY = SamplingParams(ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, ignore_eos=True)  # as people use it


def greedy(tokens: int) -> SamplingParams:
    return replace(GREEDY, max_new_tokens=tokens)


def room(batch: int, context: int, count: int) -> int:
    """Tokens of the smallest cache in which `Rows` makes `count` tokens after the first."""
    each = (
        -(-(context + count + 1) // BLOCK_SIZE) + 1
    )  # a block more: a prompt starts where one is left for each that runs
    return (batch + 1) * each * BLOCK_SIZE


class Numbers:
    """A tokenizer whose every token is text at once: its id and a blank, so that a piece tells which id came."""

    eos_id, rules = None, Rules()

    def piece(self, token_id: int) -> str:
        return f"{token_id} "


def loop_of(model: Llama, tokens: int) -> Loop:
    """The loop over a model and a new cache of so many tokens."""
    return Loop(PromptRunner(model, new_cache(model, tokens)))


def engine_of(loop: Loop) -> Engine:
    """The engine over the loop of a model of random weights, which ends no text."""
    numbers: Any = Numbers()
    config = loop.decoder.model.config
    return Engine(LoadedModel(loop, config.vocab_size, config.max_position_embeddings, (), numbers))


@dataclass(frozen=True)
class Arrivals:
    """Of each prompt its ids, and the seconds from the call to when each was there to be read."""

    ids: list[list[int]]
    seconds: list[list[float]]

    @property
    def firsts(self) -> list[float]:
        """Seconds to the first token of each prompt."""
        return [times[0] for times in self.seconds]

    @property
    def gaps(self) -> list[float]:
        """Seconds between two tokens of a prompt, of all prompts."""
        return [after - before for times in self.seconds for before, after in pairwise(times)]


def arrivals(engine: Engine, prompts: abc.Sequence[list[int]], params: abc.Sequence[SamplingParams]) -> Arrivals:
    """All prompts asked for at once."""
    found = Arrivals([[] for _ in prompts], [[] for _ in prompts])
    begin = time.perf_counter()
    for number, _, piece in engine.stream_many(list(prompts), list(params)):
        found.seconds[number].append(time.perf_counter() - begin)
        found.ids[number].append(int(piece))
    return found


class CopiedPrompt(PromptRunner):
    """A runner whose prompts have all been computed already, as one: its keys and values are copied.

    Prompts of the same length differ in the first id, by name only, and so share nothing.
    """

    def __init__(self, model: Llama, cache: KVCache) -> None:
        super().__init__(model, cache, prefill_chunk=1 << 30)  # the loop fills all rows before the first step
        self.source: list[int] = []  # blocks
        self.logits = torch.empty(0)

    def run(self, pieces: abc.Sequence[PromptPiece]) -> None:
        for piece in pieces:
            begin, sequence = piece.sequence.num_cached, piece.sequence
            end = begin + len(piece.ids)
            blocks = slice(begin // BLOCK_SIZE, -(-end // BLOCK_SIZE))
            for source, target in zip(self.source[blocks], sequence.block_table[blocks], strict=True):
                self.cache.copy_block(source, target)
            sequence.num_cached = end
            piece.take(end - 1, self.logits)


class Rows:
    """`batch` samples that step together after prompts of one length, so that steps are all there is to time.

    One prompt is computed; the others have their own blocks, into which its keys and values are copied. While it is used the
    whole cache is its own. steps: the batch to run them in, whose plans and graphs are kept.
    """

    def __init__(
        self, model: Llama, cache: KVCache, prompt: list[int], batch: int, steps: Batch[Sequence] | None = None
    ) -> None:
        copied = CopiedPrompt(model, cache)
        self.loop = Loop(copied, batch=steps)
        source = Sequence(prompt, GREEDY, 0)
        self.loop.pool.reserve(source, len(prompt))
        copied.logits = PromptRunner(model, cache).prefill(prompt, source)
        copied.source = source.block_table
        self._prompts = [[first, *prompt[1:]] for first in range(batch)]
        self._engine = engine_of(self.loop)

    def __call__(self, count: int, params: SamplingParams = GREEDY) -> tuple[list[list[int]], list[float]]:
        """Ids, one for each row, of each of `count` steps after the first token, and the seconds that each step took.

        The first step may find others' work on the device, and what is made once.
        """
        found = self.arrivals(count + 1, params)
        done = [max(times) for times in zip(*found.seconds, strict=True)]
        ids = [list(step) for step in zip(*found.ids, strict=True)]
        return ids[1:], [after - before for before, after in pairwise(done)]

    def arrivals(self, tokens: int, params: SamplingParams = GREEDY) -> Arrivals:
        """All that a reader sees, `tokens` of each row. A row's seed is its number."""
        each = [replace(params, seed=row, max_new_tokens=tokens) for row in range(len(self._prompts))]
        return arrivals(self._engine, self._prompts, each)
