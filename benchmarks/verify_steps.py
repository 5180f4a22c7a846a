"""Times of steps that verify drafted tokens: some rows of one sequence, by the ops of decode steps, on a CPU.

Knows a model and its ops; no loop, no proposer and no report. What a row costs beside the first bounds what speculation gains.
Only the step is timed: what the loop adds to it, row_costs.py measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from common import Spread
from torch import Tensor

from baize_engine.backend.choose import best_blocks
from baize_engine.backend.plan_ops import Sample
from baize_engine.model.buffers import Inputs
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import new_cache


class VerifyStep:
    """A step of the last `rows` tokens of a context that lies in a cache from its first block on.

    `logits` (rows, vocabulary) are what the last call has computed, each row's drawn greedily.
    """

    def __init__(self, model: Llama, cache: KVCache, context: int, rows: int) -> None:
        vocabulary = model.config.vocab_size
        places = torch.arange(context - rows, context)  # of the tokens in the text, and in the cache
        lens = torch.tensor([context], dtype=torch.int32)
        tables = torch.arange(-(-context // cache.block_size), dtype=torch.int32)[None]
        starts = torch.tensor([0, rows], dtype=torch.int32)
        inputs = Inputs(places % vocabulary, places, places, tables, starts, lens, context)
        work = model.activations(rows)
        self.logits, chosen = torch.empty(rows, vocabulary), torch.empty(rows, dtype=torch.int64)
        best = torch.empty(rows, best_blocks(vocabulary), dtype=torch.int32)
        greedy = [torch.full((rows,), value) for value in (0.0, 0, 1.0, 0.0, 0, 0)]
        self._calls: list[Callable[[], object]] = model.ops.compile(
            [
                *model.hidden_ops(work, inputs, cache, batch_invariant=True),
                *model.head_ops(work.x, self.logits, batch_invariant=True, best=best),
                Sample(self.logits, *greedy, places.int(), out=chosen, best=best),
            ]
        )

    def __call__(self) -> float:
        """Seconds that one step took."""
        begin = time.perf_counter()
        for call in self._calls:
            call()
        return time.perf_counter() - begin


def filled_cache(model: Llama, context: int) -> KVCache:
    """A cache of `context` tokens, random ones, so that all its pages take memory."""
    cache = new_cache(model, context)
    for part in (cache.keys, cache.values):
        part.normal_()
    return cache


def verify_steps(model: Llama, context: int, rows: Sequence[int], seconds: float) -> dict[int, Spread]:
    """Seconds of a step with each number of rows, in turns for so many seconds a number, three turns at least.

    SystemExit where the last row's logits are not those of the row by itself, to the bit.
    """
    cache = filled_cache(model, context)
    steps = {count: VerifyStep(model, cache, context, count) for count in rows}
    alone = VerifyStep(model, cache, context, 1)
    # the most first: the keys and values that it writes are those of the others
    for count in sorted(steps, reverse=True):
        steps[count]()
        alone()
        check_last(count, steps[count].logits, alone.logits)
    found: dict[int, list[float]] = {count: [] for count in rows}
    end = time.perf_counter() + seconds * len(rows)
    while len(found[rows[0]]) < 3 or time.perf_counter() < end:
        for count, step in steps.items():
            found[count].append(step())
    return {count: Spread.of(times) for count, times in found.items()}


def check_last(count: int, logits: Tensor, alone: Tensor) -> None:
    if not torch.equal(logits[-1:], alone):
        raise SystemExit(f"the last of {count} rows is not what it is by itself")
