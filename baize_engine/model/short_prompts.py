"""Short pieces of prompts on a GPU, as one CUDA graph per bucket of lengths instead of a launch from Python for every op.

A piece of 2 to 64 tokens is padded to 8, 16, 32 or 64 rows. The padding is a second sequence, in the cache's scrap block. It
leaves the piece's bits unchanged: up to 64 rows of a product do not depend on each other (kernels/product.py), and attention
reads a sequence's own rows only. Longer pieces go to the library's products, whose bits depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from baize_engine.backend.plan_ops import Embed, PlanOp
from baize_engine.model import graphs
from baize_engine.model.buffers import CachedTokens, Inputs, cache_slots, write
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama

# tokens of a piece: a single one takes the attention of decode steps, more than 64 take the library's products
FEWEST, MOST = 2, 64
SMALLEST = 8  # rows of the first bucket
ALIGNED = 4  # int32 elements that a part of a buffer is padded to: 16 bytes


class ShortPrompts:
    """The buffers, plans and graphs of a model over one cache. `hidden`: (MOST, H), the hidden states of the last piece run."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self.cache, self._model = cache, model
        self._device = torch.device(model.device)
        most = -(-max(model.config.max_position_embeddings, MOST) // cache.block_size)  # padding may be MOST rows
        self._wide = torch.zeros(3 * MOST + ALIGNED, dtype=torch.int64, device=model.device)
        self._narrow = torch.zeros(2 * ALIGNED + 2 * most, dtype=torch.int32, device=model.device)
        self._last = self._wide[3 * MOST : 3 * MOST + 1]
        ids, positions, slots = self._wide[: 3 * MOST].view(3, MOST)
        self._inputs = Inputs(
            ids,
            positions,
            slots,
            block_tables=self._narrow[2 * ALIGNED :].view(2, most),
            query_starts=self._narrow[:3],
            context_lens=self._narrow[ALIGNED : ALIGNED + 2],
            max_context=MOST,
        )
        self._work = model.activations(MOST)
        self.hidden = self._work.x
        self._last_hidden = torch.empty(1, model.config.hidden_size, dtype=model.dtype, device=model.device)
        self._logits = torch.empty(1, model.config.vocab_size, dtype=torch.float32, device=model.device)
        self._plans: dict[int, list[Callable[[], object]]] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def run(self, ids: list[int], sequence: CachedTokens) -> Tensor:
        """Runs `ids`, FEWEST to MOST tokens for which the sequence has blocks, and advances the sequence.

        Returns the logits (1, V) float32 of the last token.
        """
        rows = max(SMALLEST, 1 << (len(ids) - 1).bit_length())
        if rows not in self._plans:
            self._plans[rows] = self._model.ops.compile(self._ops(rows))
        if self._device.type != "cuda":
            self._set(ids, sequence, rows)
            for op in self._plans[rows]:
                op()
        else:
            with torch.cuda.device(self._device):
                if rows not in self._graphs:
                    self._set([], sequence, rows)  # the first run, which compiles, writes to the scrap block only
                    graphs.run_aside(self._plans[rows], self._device)
                    self._graphs[rows] = graphs.capture(self._plans[rows], self._device)
                self._set(ids, sequence, rows)
                self._graphs[rows].replay()
        sequence.num_cached += len(ids)
        return self._logits.clone()

    def _ops(self, rows: int) -> list[PlanOp]:
        work, inputs = self._work.first(rows), self._inputs.first(rows, 2, rows)
        return [
            *self._model.hidden_ops(work, inputs, self.cache, batch_invariant=True, prompt=True),
            Embed(self._last, work.x, out=self._last_hidden),  # selects the last token's row
            *self._model.head_ops(self._last_hidden, self._logits, batch_invariant=True),
        ]

    def _set(self, ids: list[int], sequence: CachedTokens, rows: int) -> None:
        """Queues the inputs of a run: `ids` after the sequence's cached tokens, then padding up to `rows`."""
        count, begin, scrap, size = len(ids), sequence.num_cached, self.cache.scrap_block, self.cache.block_size
        rest, most = MOST - count, self._inputs.block_tables.shape[1]
        positions, slots = range(begin, begin + count), cache_slots(sequence.block_table, size, begin, begin + count)
        wide = [*ids, *[0] * rest, *positions, *[0] * rest, *slots, *[scrap * size] * rest]
        wide.append(max(count - 1, 0))
        padding = [scrap] * -(-MOST // size)
        blocks = [*sequence.block_table, *[scrap] * (most - len(sequence.block_table))]
        narrow = [0, count, rows, 0, max(begin + count, 1), max(rows - count, 1), 0, 0, *blocks, *padding]
        for target, values in ((self._wide, wide), (self._narrow, narrow)):
            write(target[: len(values)], values)
