"""Decode steps without the host: tokens, positions, stop flags and random counters live on the device.

A step is one launch (on a GPU one CUDA graph): it runs the decoder's plan for one token of each row, samples, and makes the
chosen tokens the next step's input. The host runs AHEAD steps in front of the tokens it has read. Rows come and go between
steps: a new one is written into a place of the state, the last one moves to the place of one that leaves, both in the order of
the device's work, so that nobody waits. Rows that fill up a bucket write to the cache's scrap block. Knows token ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine.errors import BaizeError
from baize_engine.model import graphs, kv_cache
from baize_engine.model.kv_cache import CacheFull, KVCache
from baize_engine.model.llama import Llama, aligned_rows

AHEAD = 2  # steps launched before the oldest one's tokens are read: enough that the device never waits for the host
MAX_STOPS = 16  # stop ids a row has on the device; the host sees the rest, a few steps late
NO_STOP = -2
FEWEST_TOKENS = 256
Choose = Callable[[Sequence["Row"], Tensor], list[int]]  # the host's choice: a token for each row of logits (S, V)


@dataclass(frozen=True, eq=False)
class Row:
    """One sample to go on with. `token` was chosen and is not in the cache yet; `left` more are wanted at most.

    `on_host`: the device's choice of its tokens does not count, but the host's, for which its batch waits at every step.
    """

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
    on_host: bool = False


def context_bucket(longest: int, most: int) -> int:
    """256, 512, 1024, ... up to `most` tokens: the bound of a step whose longest context is `longest`.

    There is a graph for each, so that attention is not launched for thousands of tokens that are not there.
    """
    return min(max(FEWEST_TOKENS, 1 << (longest - 1).bit_length()), most)


class StepState:
    """The buffers of steps with up to `rows` rows over one cache; their plans, captured as graphs where there is a GPU."""

    def __init__(self, model: Llama, cache: KVCache, rows: int) -> None:
        self.rows, self.cache, self._model, device = rows, cache, model, model.device
        most = -(-model.config.max_position_embeddings // cache.block_size)

        def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.ids, self.positions, self.slots, self.tokens = aligned_rows(4, rows, torch.int64, device)
        self.lens, self.left = aligned_rows(2, rows, torch.int32, device)
        self.tables = integers(rows, most, dtype=torch.int32)
        self.stops = integers(rows, MAX_STOPS)
        self.top_k, self.seeds, self.sample_index = aligned_rows(3, rows, torch.int64, device)
        self.temperature, self.top_p, self.min_p = aligned_rows(3, rows, torch.float32, device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        vocabulary = model.head.shape[0]
        self.logits = torch.empty(rows, vocabulary, dtype=torch.float32, device=device)
        self._best = integers(rows, -(-vocabulary // model.ops.BEST_BLOCK), dtype=torch.int32)
        self._x, self._scratch = model.buffer(rows, model.config.hidden_size), model.scratch(rows)
        self._plans: dict[tuple[int, int], list[Callable[[], Any]]] = {}
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.set([])

    def ops(self, longest: int, rows: int | None = None) -> list[partial[Any]]:
        """The ops of a step of the first `rows` rows (all) over contexts of at most `longest` tokens: attention is launched

        for as many.
        """
        model, n = self._model, self.rows if rows is None else rows
        places = (self.tables[:n], self._starts[: n + 1], self.lens[:n])
        x, scratch = self._x[:n], tuple(buffer[:n] for buffer in self._scratch)
        ids, positions, slots, tokens = self.ids[:n], self.positions[:n], self.slots[:n], self.tokens[:n]
        logits, best = self.logits[:n], self._best[:n]
        return [
            partial(
                model.ops.advance, tokens, ids, positions, slots, self.lens[:n], self.left[:n], self.stops[:n],
                self.tables[:n], self.cache.block_size,
            ),
            *model.make_plan(x, scratch, ids, positions, slots, places, self.cache, True, longest),
            model.head_step(x, logits, each_row=True, best=best),
            partial(
                model.ops.sample, logits, self.temperature[:n], self.top_k[:n], self.top_p[:n], self.min_p[:n],
                self.seeds[:n], self.sample_index[:n], self.lens[:n], out=tokens, best=best,
            ),
        ]  # fmt: skip

    def _plan(self, longest: int, rows: int) -> list[Callable[[], Any]]:
        """`ops`, made once, as the calls that the backend makes of them."""
        if (longest, rows) not in self._plans:
            self._plans[longest, rows] = self._model.compile(self.ops(longest, rows))
        return self._plans[longest, rows]

    def set(self, rows: Sequence[Row]) -> None:
        """The state from which the next step goes on; rows not given are padding."""
        self.clear(slice(None))
        for place, row in enumerate(rows):
            self.put(place, row)

    def put(self, place: int, row: Row) -> None:
        """`row` goes on in this place at the next step."""
        here = slice(place, place + 1)
        self.clear(here)
        for target, value in (
            (self.tokens, row.token), (self.positions, row.sequence.length - 1),  # a step begins by going one place further
            (self.left, row.left + 1), (self.temperature, row.temperature), (self.top_k, row.top_k),
            (self.top_p, row.top_p), (self.min_p, row.min_p), (self.seeds, row.seed), (self.sample_index, row.sample_index),
        ):  # fmt: skip
            target[here].fill_(value)
        for line, values in ((self.tables[place], row.sequence.blocks), (self.stops[place], row.stop_ids[:MAX_STOPS])):
            pinned = line.device.type == "cuda"
            line[: len(values)].copy_(torch.tensor(values, dtype=line.dtype, pin_memory=pinned), non_blocking=True)

    def clear(self, places: slice) -> None:
        """These places are padding from the next step on."""
        scrap = self.cache.scrap_block
        for target, value in (
            (self.tokens, 0), (self.ids, 0), (self.positions, 0), (self.left, 0), (self.lens, 1), (self.tables, scrap),
            (self.slots, scrap * self.cache.block_size), (self.stops, NO_STOP), (self.temperature, 0),
        ):  # fmt: skip
            target[places].fill_(value)

    def move(self, source: int, place: int) -> None:
        """The row at `source` goes on at `place`."""
        for values in (
            self.ids, self.positions, self.slots, self.tokens, self.lens, self.left, self.tables, self.stops, self.top_k,
            self.seeds, self.sample_index, self.temperature, self.top_p, self.min_p,
        ):  # fmt: skip
            values[place : place + 1].copy_(values[source : source + 1])

    def add_block(self, row: int, place: int, block: int) -> None:
        """Block number `place` of a row's table, in the order of the device's work."""
        self.tables[row, place : place + 1].fill_(block)

    def run(self, longest: int, rows: int | None = None) -> None:
        """One step of the first `rows` rows (all) over contexts of at most `longest` tokens, queued on the device."""
        key = longest, self.rows if rows is None else rows
        if self.ids.device.type != "cuda":
            for op in self._plan(*key):
                op()
            return
        with torch.cuda.device(self.ids.device):
            if key not in self._graphs:
                self._graphs[key] = self._capture(*key)
            self._graphs[key].replay()

    def _capture(self, longest: int, rows: int) -> torch.cuda.CUDAGraph:
        """The plan as a graph. The state is as before: a first run, which compiles, is only made where all rows are padding."""
        device = self.ids.device
        if not any(captured == rows for _, captured in self._graphs):
            held = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
            self.set([])
            graphs.run_aside(self._plan(longest, rows), device)
            for name, value in held.items():
                getattr(self, name).copy_(value)
        return graphs.capture(self._plan(longest, rows), device)


@dataclass(eq=False)
class _Seat:
    """A row of a batch: the context it came with, the steps launched since, and its blocks that the device knows."""

    row: Row
    begin: int
    launched: int = 0
    shown: int = 0


class Batch:
    """Rows that step together. The caller reserves the cache's blocks before `launch`, and says when a row is to leave.

    A row stops by itself after `left` tokens or at a stop id, but keeps its place, and `read` tells its last token again.
    """

    def __init__(self, model: Llama, state: StepState, choose: Choose | None = None) -> None:
        self._model, self._state, self._choose = model, state, choose
        self._seats: list[_Seat] = []
        self._queued: deque[tuple[list[Row], Tensor, torch.cuda.Event | None]] = deque()

    @property
    def in_flight(self) -> int:
        """Steps launched whose tokens were not read."""
        return len(self._queued)

    @property
    def ahead(self) -> int:
        """How many of them there may be when another is launched."""
        waits = any(seat.row.on_host for seat in self._seats)
        return AHEAD if self._model.runs_ahead and not waits else 0

    @torch.inference_mode()
    def add(self, row: Row) -> None:
        """`row` takes part from the next launch on."""
        self._state.put(len(self._seats), row)
        self._seats.append(_Seat(row, row.sequence.length, shown=len(row.sequence.blocks)))

    @torch.inference_mode()
    def drop(self, row: Row) -> None:
        """`row` takes part no more. What the device writes for it was queued before anything that is queued from now on."""
        place = next(n for n, seat in enumerate(self._seats) if seat.row is row)
        last = len(self._seats) - 1
        if place < last:
            self._state.move(last, place)
            self._seats[place] = self._seats[last]
        self._state.clear(slice(last, last + 1))
        self._seats.pop()

    @torch.inference_mode()
    def launch(self) -> None:
        """Queues a step of all rows."""
        longest = 0
        for place, seat in enumerate(self._seats):
            blocks = seat.row.sequence.blocks
            for number in range(seat.shown, len(blocks)):
                self._state.add_block(place, number, blocks[number])
            seat.shown = len(blocks)
            seat.launched = min(seat.launched + 1, seat.row.left)
            longest = max(longest, seat.begin + seat.launched)  # one that has ended attends to its own context still
        bound = context_bucket(longest, self._model.config.max_position_embeddings)
        self._state.run(bound, self._bucket(len(self._seats)))
        self._queued.append(([seat.row for seat in self._seats], *_fetch(self._state.tokens[: len(self._seats)])))

    @torch.inference_mode()
    def read(self) -> list[tuple[Row, int]]:
        """The tokens of the oldest step, of each row that took part; NO_TOKEN (-1) where its logits are not finite."""
        rows, copy, event = self._queued.popleft()
        tokens = _arrived(copy, event)
        places = [place for place, row in enumerate(rows) if row.on_host]
        if places and self._choose is not None:  # it is the only step in flight then, and all rows are where they were
            chosen = self._choose([rows[place] for place in places], self._state.logits[places])
            for place, token in zip(places, chosen, strict=True):
                tokens[place] = token
                self._state.tokens[place : place + 1].fill_(token)
        return list(zip(rows, tokens, strict=True))

    def _bucket(self, rows: int) -> int:
        """1, 2, 4, ... 64, 128, 192, ... rows, where each takes a graph of its own."""
        return _bucket(rows) if self._model.runs_ahead else rows


def _bucket(rows: int) -> int:
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


class DecodeSteps:
    """Makes and keeps the states of a model and its cache, for each batch bucket, and runs samples on them."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._idle: dict[int, list[StepState]] = {}  # batches that are open at the same time have a state each

    @contextmanager
    def batch(self, most: int, choose: Choose | None = None) -> Iterator[Batch]:
        """A batch for up to `most` rows at a time, empty at first. `choose`: for rows that are `on_host`."""
        idle = self._idle.setdefault(_bucket(most), [])
        with torch.inference_mode():
            state = idle.pop() if idle else StepState(self._model, self._cache, _bucket(most))
            state.set([])
        try:
            yield Batch(self._model, state, choose)
        finally:
            idle.append(state)

    def run(self, rows: Sequence[Row]) -> Generator[list[int], None, None]:
        """Yields each step's tokens, one for each row, until all rows have ended; a row's tokens count up to its end.

        A row ends after `left` tokens or with one of its stop ids. CacheFull where the cache has no block for a row that
        goes on; BaizeError names the row and the position whose logits are not finite. Sequences grow by what was
        yielded. Leaving the iterator stops the device after the steps that are queued.
        """
        with self.batch(len(rows)) as batch:
            for row in rows:
                batch.add(row)
            going = {number: row for number, row in enumerate(rows) if row.left > 0}
            read = 0
            while going:
                while batch.in_flight <= batch.ahead and read + batch.in_flight < max(r.left for r in going.values()):
                    try:
                        self._reserve(going.values(), read, batch.in_flight)
                    except CacheFull:
                        if batch.in_flight:  # a row that ends in these may leave its blocks unasked for
                            break
                        raise
                    batch.launch()
                tokens = [token for _, token in batch.read()]
                read += 1
                for number, row in list(going.items()):
                    row.sequence.length += 1
                    if tokens[number] < 0:
                        raise not_finite(f"step {read} (position {row.sequence.length}) of row {number}")
                    if read == row.left or tokens[number] in row.stop_ids:
                        del going[number]
                yield tokens

    def _reserve(self, rows: Iterable[Row], read: int, in_flight: int) -> None:
        for row in rows:
            if read + in_flight < row.left:
                self._cache.reserve(row.sequence, in_flight + 1)


def not_finite(where: str) -> BaizeError:
    return BaizeError(
        f"{where}: a logit is not finite; the weights are damaged or their values leave this dtype's range"
    )


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
