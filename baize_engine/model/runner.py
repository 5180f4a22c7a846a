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

import torch
from torch import Tensor

from baize_engine.errors import BaizeError
from baize_engine.model import kv_cache
from baize_engine.model.graphs import runs_ahead_on
from baize_engine.model.kv_cache import CacheFull, KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.step_state import StepState, context_bucket

AHEAD = 2  # steps launched before the oldest one's tokens are read: enough that the device never waits for the host
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

    def __init__(self, state: StepState, runs_ahead: bool, choose: Choose | None = None) -> None:
        self._state, self._runs_ahead, self._choose = state, runs_ahead, choose
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
        return AHEAD if self._runs_ahead and not waits else 0

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
        max_context = 0
        for place, seat in enumerate(self._seats):
            blocks = seat.row.sequence.blocks
            for number in range(seat.shown, len(blocks)):
                self._state.add_block(place, number, blocks[number])
            seat.shown = len(blocks)
            seat.launched = min(seat.launched + 1, seat.row.left)
            # one that has ended attends to its own context still
            max_context = max(max_context, seat.begin + seat.launched)
        bound = context_bucket(max_context, self._state.model.config.max_position_embeddings)
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
        return _bucket(rows) if self._runs_ahead else rows


def _bucket(rows: int) -> int:
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


class DecodeSteps:
    """Makes and keeps the states of a model and its cache, for each batch bucket, and runs samples on them.

    `runs_ahead`: whether the host launches steps before it has read the tokens of those before; on a GPU it does.
    """

    def __init__(self, model: Llama, cache: KVCache, *, runs_ahead: bool | None = None) -> None:
        self._model, self._cache = model, cache
        self._runs_ahead = runs_ahead_on(model.device) if runs_ahead is None else runs_ahead
        self._idle: dict[int, list[StepState]] = {}  # batches that are open at the same time have a state each

    @contextmanager
    def batch(self, most: int, choose: Choose | None = None) -> Iterator[Batch]:
        """A batch for up to `most` rows at a time, empty at first. `choose`: for rows that are `on_host`."""
        idle = self._idle.setdefault(_bucket(most), [])
        with torch.inference_mode():
            state = idle.pop() if idle else StepState(self._model, self._cache, _bucket(most))
            state.set([])
        try:
            yield Batch(state, self._runs_ahead, choose)
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
