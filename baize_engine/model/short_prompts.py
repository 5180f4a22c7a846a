"""Short pieces of prompts on a GPU without a launch from Python for each op: one CUDA graph for each bucket of lengths.

A piece of 2 to 64 tokens is filled up to 8, 16, 32 or 64 rows. So few rows do not depend on each other (kernels/product.py) and
attention looks at a sequence's own, so that the bits are those of the piece by itself: the rows behind its end are a sequence
of their own in the cache's scrap block. Longer pieces are the library's products, whose bits follow the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from baize_engine.model import graphs, names
from baize_engine.model.kv_cache import KVCache, Sequence

if TYPE_CHECKING:
    from baize_engine.model.llama import Llama

# tokens of a piece: a single one is a decode step's attention, more than 64 are the library's products
FEWEST, MOST = 2, 64
SMALLEST = 8  # rows of the first bucket
ALIGNED = 4  # numbers between two parts of a buffer, for 16 bytes of int32


class ShortPrompts:
    """Buffers, plans and graphs of a model over one cache."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self.cache, self._model = cache, model
        self._device = model.weights[names.EMBED].device
        most = -(-max(model.config.max_position_embeddings, MOST) // cache.block_size)  # padding may be MOST rows
        self._wide = torch.zeros(3 * MOST + ALIGNED, dtype=torch.int64, device=self._device)
        self._narrow = torch.zeros(2 * ALIGNED + 2 * most, dtype=torch.int32, device=self._device)
        self._tokens, self._positions, self._slots = self._wide[: 3 * MOST].view(3, MOST)
        self._last = self._wide[3 * MOST : 3 * MOST + 1]
        self._starts, self._lens = self._narrow[:3], self._narrow[ALIGNED : ALIGNED + 2]
        self._tables = self._narrow[2 * ALIGNED :].view(2, most)
        self._x, self._scratch = model.buffer(MOST, model.config.hidden_size), model.scratch(MOST)
        self._hidden = model.buffer(1, model.config.hidden_size)
        self._logits = torch.empty(1, model.head.shape[0], dtype=torch.float32, device=self._device)
        self._plans: dict[int, list[Callable[[], Any]]] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, ids: list[int], sequence: Sequence) -> Tensor:
        """Logits (1, V) float32 of the last of `ids`, FEWEST to MOST tokens whose blocks the sequence has; it advances."""
        rows = max(SMALLEST, 1 << (len(ids) - 1).bit_length())
        if rows not in self._plans:
            self._plans[rows] = self._model.compile(self._ops(rows))
        if self._device.type != "cuda":
            self._set(ids, sequence, rows)
            for op in self._plans[rows]:
                op()
        else:
            with torch.cuda.device(self._device):
                if rows not in self._graphs:
                    self._set([], sequence, rows)  # the first run, which compiles, writes to the scrap block alone
                    graphs.run_aside(self._plans[rows], self._device)
                    self._graphs[rows] = graphs.capture(self._plans[rows], self._device)
                self._set(ids, sequence, rows)
                self._graphs[rows].replay()
        sequence.length += len(ids)
        return self._logits.clone()

    def _ops(self, rows: int) -> list[partial[Any]]:
        model = self._model
        x, scratch = self._x[:rows], tuple(buffer[:rows] for buffer in self._scratch)
        inputs = self._tokens[:rows], self._positions[:rows], self._slots[:rows]
        places = self._tables, self._starts, self._lens
        return [
            *model.make_plan(x, scratch, *inputs, places, self.cache, True, prompt=True),
            partial(torch.index_select, x, 0, self._last, out=self._hidden),
            model.head_step(self._hidden, self._logits, each_row=True),
        ]

    def _set(self, ids: list[int], sequence: Sequence, rows: int) -> None:
        """The piece behind what the sequence has, and padding up to `rows`, in the order of the device's work."""
        count, begin, scrap = len(ids), sequence.length, self.cache.scrap_block
        rest, most = MOST - count, self._tables.shape[1]
        positions, slots = range(begin, begin + count), self.cache.slots(sequence, begin, begin + count)
        wide = [*ids, *[0] * rest, *positions, *[0] * rest, *slots, *[scrap * self.cache.block_size] * rest]
        wide.append(max(count - 1, 0))
        padding = [scrap] * -(-MOST // self.cache.block_size)
        blocks = [*sequence.blocks, *[scrap] * (most - len(sequence.blocks))]
        narrow = [0, count, rows, 0, max(begin + count, 1), max(rows - count, 1), 0, 0, *blocks, *padding]
        for target, values in ((self._wide, wide), (self._narrow, narrow)):
            staged = torch.tensor(values, dtype=target.dtype, pin_memory=target.device.type == "cuda")
            target[: len(values)].copy_(staged, non_blocking=True)
