"""The buffers of decode steps: each row's tokens, positions, stop ids and random counters, all on the device.

A step is one launch (on a GPU, one CUDA graph): it takes the tokens chosen last as input, runs the decoder's plan for one
token per row, and samples. Padding rows write to the cache's scrap block. Knows token ids and blocks; not who owns them, nor
when a row leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from baize_engine.backend.choose import best_blocks
from baize_engine.backend.plan_ops import Advance, PlanOp, Sample
from baize_engine.model import graphs
from baize_engine.model.buffers import CachedTokens, Inputs, aligned_rows, write
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import Mirrored, mirrored, mirrored_now

MAX_STOPS = 16  # stop ids per row that the device checks; the host checks the rest, a few steps late
NO_STOP = -2
FEWEST_TOKENS = 256


class Sampling(Protocol):
    """The sampling parameters that the device applies, as SamplingParams defines them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


class Stepping(CachedTokens, Protocol):
    """A sequence in a batch of steps. `num_cached` excludes tokens in flight; Batch sets `row` and `num_blocks_sent`."""

    seed: int
    index: int
    num_in_flight: int
    on_host: bool  # the host chooses its tokens, and the device's choice is ignored
    row: int
    num_blocks_sent: int
    token_ids: list[int]

    @property
    def params(self) -> Sampling: ...
    @property
    def stop_ids(self) -> Collection[int]: ...
    @property
    def num_left(self) -> int: ...


def context_bucket(context: int, most: int) -> int:
    """`context`, the longest of a step, rounded up to 256, 512, 1024, ... but at most `most` tokens.

    Each bucket has its own graph, so that short contexts do not pay for an attention launch sized for long ones.
    """
    return min(max(FEWEST_TOKENS, 1 << (context - 1).bit_length()), most)


class StepState(Mirrored):
    """The buffers and plans of steps with up to `rows` rows over one cache.

    On a GPU the plans are captured as graphs, one per number of rows and bound of the contexts. A CPU's plans serve any
    context: there the bound changes neither bits nor speed, so that there is one plan per number of rows.
    """

    mirror_name = "steps"

    def __init__(self, model: Llama, cache: KVCache, rows: int) -> None:
        self.rows, self.cache, self.model, device = rows, cache, model, model.device
        blocks = -(-model.config.max_position_embeddings // cache.block_size)
        self.ids, self.positions, self.slots, self.tokens = aligned_rows(4, rows, torch.int64, device)
        self.lens, self.left = aligned_rows(2, rows, torch.int32, device)
        self.tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        self.stops = torch.zeros(rows, MAX_STOPS, dtype=torch.int64, device=device)
        self.top_k, self.seeds, self.sample_index = aligned_rows(3, rows, torch.int64, device)
        self.temperature, self.top_p, self.min_p = aligned_rows(3, rows, torch.float32, device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        vocabulary = model.config.vocab_size
        self.logits = torch.empty(rows, vocabulary, dtype=torch.float32, device=device)
        self._best = torch.zeros(rows, best_blocks(vocabulary), dtype=torch.int32, device=device)
        self._work = model.activations(rows)
        self._parts = model.logit_parts(rows)
        self._inputs = Inputs(
            self.ids,
            self.positions,
            self.slots,
            self.tables,
            self._starts,
            self.lens,
            model.config.max_position_embeddings,
        )
        self._plans: dict[tuple[int, int], list[Callable[[], object]]] = {}
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.set([])
        self.lead(model.channel)

    def ops(self, max_context: int, rows: int | None = None) -> list[PlanOp]:
        """The ops of a step of the first `rows` rows (default: all), for contexts of at most `max_context` tokens."""
        model, n = self.model, self.rows if rows is None else rows
        work, inputs = self._work.first(n), self._inputs.first(n, n, max_context)
        tokens, logits, best = self.tokens[:n], self.logits[:n], self._best[:n]
        parts = None if self._parts is None else self._parts.first(n)
        return [
            Advance(
                tokens, inputs.ids, inputs.positions, inputs.slots, inputs.context_lens, self.left[:n], self.stops[:n],
                inputs.block_tables, self.cache.block_size,
            ),
            *model.hidden_ops(work, inputs, self.cache, batch_invariant=True),
            *model.head_ops(work.x, logits, batch_invariant=True, best=best, parts=parts),
            *model.choice_ops(
                Sample(
                    logits, self.temperature[:n], self.top_k[:n], self.top_p[:n], self.min_p[:n], self.seeds[:n],
                    self.sample_index[:n], inputs.context_lens, out=tokens, best=best,
                ),
            ),
        ]  # fmt: skip

    def _plan(self, max_context: int, rows: int) -> list[Callable[[], object]]:
        """The backend's calls for `ops`, made once."""
        if (max_context, rows) not in self._plans:
            self._plans[max_context, rows] = self.model.ops.compile(self.ops(max_context, rows))
        return self._plans[max_context, rows]

    @mirrored
    def set(self, sequences: Sequence[Stepping]) -> None:
        """Sets all rows: the sequences take the first ones, the rest become padding."""
        self.clear(slice(None))
        for place, sequence in enumerate(sequences):
            self.put(place, sequence)

    @mirrored
    def put(self, place: int, sequence: Stepping) -> None:
        """Puts a sequence, none of whose tokens are in flight, into row `place` for the next step."""
        here, params = slice(place, place + 1), sequence.params
        self.clear(here)
        # A step starts by advancing the position by one and taking one token off `left`.
        for target, value in (
            (self.tokens, sequence.token_ids[-1]), (self.positions, sequence.num_cached - 1),
            (self.left, sequence.num_left + 1), (self.temperature, params.temperature), (self.top_k, params.top_k),
            (self.top_p, params.top_p), (self.min_p, params.min_p), (self.seeds, sequence.seed),
            (self.sample_index, sequence.index),
        ):  # fmt: skip
            target[here].fill_(value)
        stops = list(islice(sequence.stop_ids, MAX_STOPS))
        for line, values in ((self.tables[place], sequence.block_table), (self.stops[place], stops)):
            write(line[: len(values)], values)

    @mirrored
    def resume(self, sequences: Sequence[Stepping]) -> None:
        """Moves the first rows, which are those of `sequences`, on to where these are now."""
        count = len(sequences)
        # as in `put`; a token that is already counted in flight is taken off `left` by the step
        left = [sequence.num_left + sequence.num_in_flight + 1 for sequence in sequences]
        for target, values in (
            (self.tokens, [sequence.token_ids[-1] for sequence in sequences]),
            (self.positions, [sequence.num_cached - 1 for sequence in sequences]), (self.left, left),
        ):  # fmt: skip
            write(target[:count], values)

    @mirrored
    def clear(self, places: slice) -> None:
        """Makes these rows padding from the next step on."""
        scrap = self.cache.scrap_block
        for target, value in (
            (self.tokens, 0), (self.ids, 0), (self.positions, 0), (self.left, 0), (self.lens, 1), (self.tables, scrap),
            (self.slots, scrap * self.cache.block_size), (self.stops, NO_STOP), (self.temperature, 0),
        ):  # fmt: skip
            target[places].fill_(value)

    @mirrored
    def move(self, source: int, place: int) -> None:
        """Copies row `source` to row `place`."""
        for values in (
            self.ids, self.positions, self.slots, self.tokens, self.lens, self.left, self.tables, self.stops, self.top_k,
            self.seeds, self.sample_index, self.temperature, self.top_p, self.min_p,
        ):  # fmt: skip
            values[place : place + 1].copy_(values[source : source + 1])

    @mirrored
    def set_token(self, row: int, token_id: int) -> None:
        """Queues making `token_id` the next input of a row."""
        self.tokens[row : row + 1].fill_(token_id)

    @mirrored
    def add_block(self, row: int, place: int, block: int) -> None:
        """Queues writing `block` to entry `place` of a row's block table."""
        self.tables[row, place : place + 1].fill_(block)

    @mirrored_now
    def run(self, max_context: int, rows: int | None = None) -> None:
        """Queues one step of the first `rows` rows (default: all) over contexts of at most `max_context` tokens."""
        rows = self.rows if rows is None else rows
        if self.ids.device.type != "cuda":
            for op in self._plan(self._inputs.max_context, rows):
                op()
            return
        key = max_context, rows
        with torch.cuda.device(self.ids.device):
            if key not in self._graphs:
                self._graphs[key] = self._capture(*key)
            self._graphs[key].replay()

    def _capture(self, max_context: int, rows: int) -> torch.cuda.CUDAGraph:
        """The plan as a graph. The state is left unchanged: the first run, which compiles, uses padding rows only."""
        device = self.ids.device
        if not any(captured == rows for _, captured in self._graphs):
            held = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
            self.set([])
            graphs.run_aside(self._plan(max_context, rows), device)
            for name, value in held.items():
                getattr(self, name).copy_(value)
        return graphs.capture(self._plan(max_context, rows), device)
