"""Who computes what next: admission, prompts in pieces, steps, and who makes room when blocks run out. Policy only.

Plain numbers over a BlockPool; no tensors, no model. The caller asks for one action at a time and carries it out before it
asks again. Sequences start in the order in which they come and the youngest makes room: what runs is older than what waits,
the oldest goes on always, and so every sequence finishes. One prompt is computed at a time, so that the next may begin with its
chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from baize_engine.generation.block_pool import BlockPool, CacheFull
from baize_engine.generation.sequence import Sequence, Status

Copy = tuple[int, int]  # a block's rows, from and to
FILL = 4  # pieces of prompts between two steps while more than half of the rows are empty: such steps cost more a token


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute tokens [begin, end) of the prompt, advance num_cached, then call `prefilled`."""

    sequence: Sequence
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Run a step in which each of these makes a token. Then, now or later, call `arrived` for each, and `finish`."""

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class Read:
    """Read the oldest step's tokens; before that nothing can be done."""


@dataclass(frozen=True, slots=True)
class SwapOut:
    """Copy these blocks, all that the sequence has in the cache, to the host's memory. They are free already."""

    sequence: Sequence
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Write what was swapped out into the sequence's blocks, but for the first `kept`. It goes on where it was."""

    sequence: Sequence
    kept: int


@dataclass(frozen=True, slots=True)
class Fail:
    """End the sequence with `error`: the cache is too small for it alone."""

    sequence: Sequence
    error: CacheFull


Action = Prefill | Launch | Read | SwapOut | SwapIn | Fail


class Scheduler:
    """The policy over `pool`, for at most `max_rows` sequences at a time.

    Prompts run in pieces of at most `piece` tokens that end at multiples of the pool's chunk, about `piece` tokens of them
    between two steps, or FILL times as many.
    """

    def __init__(self, pool: BlockPool, max_rows: int, piece: int) -> None:
        if piece < pool.chunk:
            raise ValueError(f"piece is {piece}, wanted at least the pool's chunk, {pool.chunk}")
        self._pool, self._max_rows, self._piece = pool, max_rows, piece
        self._waiting: deque[Sequence] = deque()  # those that were aborted meanwhile included
        self._filling: Sequence | None = None  # its prompt is being computed; it is the youngest under way
        self._running: list[Sequence] = []  # in the order of their starts
        self._budget = FILL * piece  # tokens of prompts that may still be computed before the next step

    def add(self, sequences: Iterable[Sequence]) -> None:
        """These wait from now on, behind all that came before. Samples of one prompt stand next to each other."""
        self._waiting.extend(sequences)

    @property
    def sequences(self) -> list[Sequence]:
        """All that were added and have not finished."""
        self._drop_finished()
        filling = [self._filling] if self._filling else []
        return [*self._running, *filling, *(one for one in self._waiting if not one.finished)]

    def schedule(self, in_flight: bool) -> Action | None:
        """What to do now; None where all is done. `in_flight`: some step's tokens were not read yet."""
        while self._next_waiting() or self._filling or self._running:
            if self._budget > 0 and (action := self._prompt()):
                return action
            self._budget = self._piece * (FILL if 2 * len(self._running) < self._max_rows else 1)
            if action := self._step(in_flight):
                return action
        return None

    def prefilled(self, sequence: Sequence) -> list[tuple[Sequence, Copy | None]]:
        """To be called when a piece of a prompt is in the cache. Gives what has all of its prompt by that and runs now:
        nothing, or the sequence and the other samples of its prompt that start with it, each with the block that has to
        be copied for it.
        """
        self._pool.remember(sequence)
        if sequence.num_cached < len(sequence.prompt_ids):
            return []
        self._filling = None
        self._run(sequence)
        ready: list[tuple[Sequence, Copy | None]] = [(sequence, None)]
        while (
            self._has_row()
            and (twin := self._next_waiting())
            and twin.prompt_ids is sequence.prompt_ids
            and twin.scoring is None
            and self._pool.free_blocks > len(self._running) + 1
        ):
            self._waiting.popleft()
            copy = self._pool.fork(sequence, twin)
            self._run(twin)
            ready.append((twin, copy))
        return ready

    def arrived(self, sequence: Sequence) -> None:
        """A step's token of the sequence was read."""
        sequence.num_cached += 1
        sequence.num_in_flight -= 1

    def finish(self, sequence: Sequence) -> None:
        """The sequence has all its tokens, or is not wanted any more, wherever it is: its blocks are free."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            self._pool.free(sequence)
        elif sequence.status is Status.PREFILL:
            self._filling = None
            self._pool.free(sequence)
        sequence.status = Status.FINISHED  # where it waits, it is passed over
        sequence.num_in_flight = 0

    def _next_waiting(self) -> Sequence | None:
        self._drop_finished()
        return self._waiting[0] if self._waiting else None

    def _drop_finished(self) -> None:
        while self._waiting and self._waiting[0].finished:
            self._waiting.popleft()

    def _prompt(self) -> Action | None:
        """The next piece of a prompt, or the return of a sequence, where one can start."""
        if self._filling is None:
            first = self._next_waiting()
            if first is None or not self._has_row():
                return None
            try:
                if not self._start(first):
                    return None
            except CacheFull as error:
                return Fail(first, error)
            self._waiting.popleft()
            if first.status is Status.SWAPPED:
                return self._back(first)
            first.status = Status.PREFILL
            self._filling = first
        sequence, begin = self._filling, self._filling.num_cached
        chunk = self._pool.chunk
        end = min(len(sequence.prompt_ids), (begin + self._piece) // chunk * chunk)
        self._budget -= end - begin
        return Prefill(sequence, begin, end)

    def _has_row(self) -> bool:
        return len(self._running) + (self._filling is not None) < self._max_rows

    def _start(self, sequence: Sequence) -> bool:
        """Gives the sequence blocks for what it has and its next token, if that leaves one to each that runs."""
        swapped = sequence.status is Status.SWAPPED
        self._pool.begin(sequence)
        rows = sequence.num_tokens - swapped + (sequence.max_tokens > 0)
        new = rows - sequence.num_cached
        if self._running and self._pool.needed(sequence, new) + len(self._running) > self._pool.free_blocks:
            self._pool.free(sequence)
            return False
        try:
            self._pool.reserve(sequence, new)
        except CacheFull:
            self._pool.free(sequence)
            raise
        return True

    def _run(self, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        self._running.append(sequence)

    def _back(self, sequence: Sequence) -> SwapIn:
        kept = sequence.num_cached // self._pool.block_size
        sequence.num_cached = sequence.num_tokens - 1  # the last token is the next step's input
        self._run(sequence)
        return SwapIn(sequence, kept)

    def _step(self, in_flight: bool) -> Action | None:
        going = [sequence for sequence in self._running if sequence.num_left > 0]
        if not going:
            return Read() if self._running else None
        for sequence in going:
            try:
                self._pool.reserve(sequence, sequence.num_in_flight + 1)
            except CacheFull as error:
                if in_flight:  # some may end in these
                    return Read()
                if self._filling is None and len(self._running) == 1:
                    return Fail(sequence, error)
                return self._make_room()
        for sequence in going:
            sequence.num_in_flight += 1
        return Launch(going)

    def _make_room(self) -> SwapOut | None:
        """Sends the youngest back to wait. A prompt that was under way begins anew, perhaps with its chunks as a prefix."""
        if self._filling is not None:
            victim, self._filling = self._filling, None
            self._pool.free(victim)
            victim.status = Status.WAITING
            self._waiting.appendleft(victim)
            return None
        victim = self._running.pop()
        blocks = victim.block_table[: -(-victim.num_cached // self._pool.block_size)]
        self._pool.free(victim)
        victim.status = Status.SWAPPED
        self._waiting.appendleft(victim)
        return SwapOut(victim, blocks)
