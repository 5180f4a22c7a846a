"""Decode steps without the host: tokens, positions, stop flags and random counters live on the device.

A step is one launch (on a GPU one CUDA graph): it runs the decoder's plan for one token of each row, samples, and makes the
chosen tokens the next step's input. The host runs AHEAD steps in front of the tokens it has read, and only reserves cache
blocks. A row that has ended stays where it is until all have; rows that fill up a batch bucket write to the cache's scrap
block. Knows token ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine.errors import BaizeError
from baize_engine.model import kv_cache
from baize_engine.model.kv_cache import CacheFull, KVCache
from baize_engine.model.llama import Llama

AHEAD = 2  # steps launched before the oldest one's tokens are read: enough that the device never waits for the host
MAX_STOPS = 16  # stop ids a row has on the device; the host sees the rest, a few steps late
NO_STOP = -2
FEWEST_TOKENS = 256


@dataclass(frozen=True)
class Row:
    """One sample to go on with. `token` was chosen and is not in the cache yet; `left` more are wanted at most."""

    sequence: kv_cache.Sequence
    token: int
    left: int
    stop_ids: Sequence[int] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sample_index: int = 0


def context_bucket(longest: int, most: int) -> int:
    """256, 512, 1024, ... up to `most` tokens: the bound of a step whose longest context is `longest`.

    There is a graph for each, so that attention is not launched for thousands of tokens that are not there.
    """
    return min(max(FEWEST_TOKENS, 1 << (longest - 1).bit_length()), most)


class StepState:
    """The buffers of steps with `rows` rows over one cache; their plans, captured as graphs where there is a GPU."""

    def __init__(self, model: Llama, cache: KVCache, rows: int) -> None:
        self.rows, self.cache, self._model, device = rows, cache, model, model.device
        most = -(-model.config.max_position_embeddings // cache.block_size)

        def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.ids, self.positions, self.slots, self.tokens = integers(4, rows)
        self.lens, self.left = integers(2, rows, dtype=torch.int32)
        self.tables = integers(rows, most, dtype=torch.int32)
        self.stops = integers(rows, MAX_STOPS)
        self.top_k, self.seeds, self.sample_index = integers(3, rows)
        self.temperature, self.top_p, self.min_p = torch.zeros(3, rows, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        vocabulary = model.head.shape[0]
        self._logits = torch.empty(rows, vocabulary, dtype=torch.float32, device=device)
        self._best = integers(rows, -(-vocabulary // model.ops.BEST_BLOCK), dtype=torch.int32)
        self._x, self._scratch = model.buffer(rows, model.config.hidden_size), model.scratch(rows)
        self._plans: dict[int, list[Callable[[], Any]]] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.set([])

    def ops(self, longest: int) -> list[partial[Any]]:
        """The ops of a step over contexts of at most `longest` tokens: attention is launched for as many."""
        model, places = self._model, (self.tables, self._starts, self.lens)
        return [
            partial(
                model.ops.advance, self.tokens, self.ids, self.positions, self.slots, self.lens, self.left, self.stops,
                self.tables, self.cache.block_size,
            ),
            *model.make_plan(
                self._x, self._scratch, self.ids, self.positions, self.slots, places, self.cache, True, longest
            ),
            model.head_step(self._x, self._logits, each_row=True, best=self._best),
            partial(
                model.ops.sample, self._logits, self.temperature, self.top_k, self.top_p, self.min_p, self.seeds,
                self.sample_index, self.lens, out=self.tokens, best=self._best,
            ),
        ]  # fmt: skip

    def _plan(self, longest: int) -> list[Callable[[], Any]]:
        """`ops`, made once, as the calls that the backend makes of them."""
        if longest not in self._plans:
            self._plans[longest] = self._model.compile(self.ops(longest))
        return self._plans[longest]

    def set(self, rows: Sequence[Row]) -> None:
        """The state from which the next step goes on; rows not given are padding."""
        scrap = self.cache.scrap_block
        # a step begins by going one place further
        state = [(row.token, row.sequence.length - 1, row.left + 1) for row in rows]
        columns = torch.tensor(state + [(0, 0, 0)] * (self.rows - len(rows))).t()
        for target, column in zip((self.tokens, self.positions, self.left), columns, strict=True):
            target.copy_(column)
        self.ids.zero_()
        self.slots.fill_(scrap * self.cache.block_size)
        self.lens.fill_(1)
        tables = torch.full(self.tables.shape, scrap, dtype=torch.int32)
        stops = torch.full(self.stops.shape, NO_STOP)
        for number, row in enumerate(rows):
            tables[number, : len(row.sequence.blocks)] = torch.tensor(row.sequence.blocks, dtype=torch.int32)
            known = list(row.stop_ids)[:MAX_STOPS]
            stops[number, : len(known)] = torch.tensor(known, dtype=torch.int64)
        self.tables.copy_(tables)
        self.stops.copy_(stops)
        for name in ("temperature", "top_k", "top_p", "min_p", "seed", "sample_index"):
            target = self.seeds if name == "seed" else getattr(self, name)
            target.copy_(torch.tensor([getattr(row, name) for row in rows] + [0] * (self.rows - len(rows))))

    def add_block(self, row: int, place: int, block: int) -> None:
        """Block number `place` of a row's table, in the order of the device's work."""
        self.tables[row, place : place + 1].fill_(block)

    def run(self, longest: int) -> None:
        """One step over contexts of at most `longest` tokens, queued on the device."""
        if self.ids.device.type != "cuda":
            for op in self._plan(longest):
                op()
            return
        with torch.cuda.device(self.ids.device):
            if longest not in self._graphs:
                self._graphs[longest] = self._capture(longest)
            self._graphs[longest].replay()

    def _capture(self, longest: int) -> torch.cuda.CUDAGraph:
        """The plan as a graph. The state is as before: a first run, which compiles, is only made where all rows are padding."""
        device = self.ids.device
        if not self._graphs:
            held = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
            self.set([])
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for op in self._plan(longest):
                    op()
            torch.cuda.current_stream(device).wait_stream(side)
            for name, value in held.items():
                getattr(self, name).copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for op in self._plan(longest):
                op()
        return graph


class DecodeSteps:
    """Makes and keeps the states of a model and its cache, for each batch bucket, and runs samples on them."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._idle: dict[int, list[StepState]] = {}  # runs that are open at the same time have a state each

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> Generator[list[int], None, None]:
        """Yields each step's tokens, one for each row, until all rows have ended; a row's tokens count up to its end.

        A row ends after `left` tokens or with one of its stop ids. CacheFull where the cache has no block for a row that
        goes on; BaizeError names the row and the position whose logits are not finite. Sequences grow by what was
        yielded. Leaving the iterator stops the device after the steps that are queued.
        """
        bucket = self._bucket(len(rows))
        idle = self._idle.setdefault(bucket, [])
        state = idle.pop() if idle else StepState(self._model, self._cache, bucket)
        try:
            yield from self._run(state, rows)
        finally:
            idle.append(state)

    def _run(self, state: StepState, rows: Sequence[Row]) -> Iterator[list[int]]:
        state.set(rows)
        begins = [row.sequence.length for row in rows]
        open_rows = {number: row for number, row in enumerate(rows) if row.left > 0}
        queued: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        launched = read = 0
        while open_rows:
            while len(queued) <= self._ahead and launched < max(row.left for row in open_rows.values()):
                try:
                    self._reserve(state, open_rows, begins, launched)
                except CacheFull:
                    if queued:  # a row that ends in these may leave its blocks unasked for
                        break
                    raise
                # over all rows: one that has ended attends to its own context until the others have ended too
                longest = max(begin + min(launched + 1, row.left) for begin, row in zip(begins, rows, strict=True))
                state.run(context_bucket(longest, self._model.config.max_position_embeddings))
                launched += 1
                queued.append(_fetch(state.tokens))
            tokens = _arrived(*queued.popleft())[: len(rows)]
            read += 1
            for number, row in list(open_rows.items()):
                row.sequence.length += 1
                if tokens[number] < 0:
                    raise BaizeError(
                        f"step {read} (position {row.sequence.length}) of row {number}: a logit is not finite; the weights "
                        "are damaged or their values leave this dtype's range"
                    )
                if read == row.left or tokens[number] in row.stop_ids:
                    del open_rows[number]
            yield tokens

    @property
    def _ahead(self) -> int:
        return AHEAD if self._model.runs_ahead else 0

    def _bucket(self, rows: int) -> int:
        """1, 2, 4, ... 64, 128, 192, ... rows, where each takes a graph of its own."""
        if not self._model.runs_ahead:
            return rows
        return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64

    def _reserve(self, state: StepState, rows: dict[int, Row], begins: list[int], launched: int) -> None:
        """Room for the token that the step after `launched` others writes, and its block in the device's table."""
        for number, row in rows.items():
            if launched < row.left:
                held = len(row.sequence.blocks)
                self._cache.reserve(row.sequence, begins[number] + launched + 1 - row.sequence.length)
                for place in range(held, len(row.sequence.blocks)):
                    state.add_block(number, place, row.sequence.blocks[place])


def _fetch(tokens: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Asks for a copy in the host's memory, and the event of its arrival; nobody waits."""
    if tokens.device.type != "cuda":
        return tokens.clone(), None
    copy = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    copy.copy_(tokens, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tokens.device))
    return copy, event


def _arrived(copy: Tensor, event: torch.cuda.Event | None) -> list[int]:
    if event is not None:
        event.synchronize()
    return list(copy.tolist())
