"""The scheduler: admission, prompts in pieces, decode steps, and preemption when blocks run out. Policy only.

Plain numbers over a BlockPool; no tensors, no model. The caller requests one action at a time and carries it out before it
requests the next. Calls take turns in starting a prompt, so that a short call does not wait for all prompts of a long one;
the samples of a prompt start together as far as there is room. When blocks run out, the sequence that started last is
preempted, and it returns before anything new starts: the one that has run longest is never preempted, so every sequence
finishes. A prompt waits until the chunks that it can share are computed; several are in progress only within one action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from baize_engine.generation.block_pool import BlockPool, CacheFull
from baize_engine.generation.sequence import Sequence, Status

Copy = tuple[int, int]  # blocks: copy the rows of the first to the second
FILL = 4  # pieces of prompts between two steps while they fill rows and over half are empty: steps cost more per token then


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [begin, end) of a prompt."""

    sequence: Sequence
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute these pieces of different prompts together and advance num_cached; then call `prefilled` or `finish` for each."""

    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Launch:
    """Launch a step that makes a token for each of these.

    When its tokens are read, call `arrived` for each sequence, and `finish` for those that end.
    """

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class Read:
    """Read the oldest step's tokens: nothing else can be done before."""


@dataclass(frozen=True, slots=True)
class SwapOut:
    """Copy these blocks, all that the sequence has in the cache, to host memory. The pool already counts them as free."""

    sequence: Sequence
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Copy what was swapped out back into the sequence's blocks, except the first `kept`, and continue the sequence."""

    sequence: Sequence
    kept: int


@dataclass(frozen=True, slots=True)
class Fail:
    """End the sequence with `error`: the cache is too small even for it alone."""

    sequence: Sequence
    error: CacheFull


Action = Prefill | Launch | Read | SwapOut | SwapIn | Fail


class Scheduler:
    """Schedules at most `max_rows` sequences at a time over `pool`.

    Prompts run in pieces of at most `piece` tokens, which end at multiples of the pool's chunk; with `together`, an action
    has pieces of several prompts if they are that many tokens at most. Between two steps about
    `piece` tokens of prompts are computed, or FILL times as many while over half of the rows are empty; but no more than
    `piece` tokens of prompts that will take part in no step, such as scored ones, because these leave the rows empty.
    """

    def __init__(self, pool: BlockPool, max_rows: int, piece: int, together: bool = False) -> None:
        if piece < pool.chunk:
            raise ValueError(f"piece is {piece}, wanted at least the pool's chunk, {pool.chunk}")
        self._pool, self._max_rows, self._piece, self._together = pool, max_rows, piece, together
        # The lines may include sequences that were aborted meanwhile.
        self._calls: deque[deque[Sequence]] = deque()  # a line for each call; the first has the turn
        self._preempted: deque[Sequence] = deque()  # in the order in which they started; before all calls
        # Those whose prompts are being computed, with the lines that they came from; started after all running ones. Between
        # two actions that is at most one.
        self._filling: dict[Sequence, deque[Sequence]] = {}
        # The line of the prompt that was preempted in progress; nothing else starts before that returns.
        self._interrupted: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in the order in which they started
        self._budget = FILL * piece  # prompt tokens that may still be computed before the next step

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queues the sequences of one call. Samples of one prompt must be adjacent."""
        self._calls.append(deque(sequences))

    @property
    def sequences(self) -> list[Sequence]:
        """All unfinished sequences."""
        waiting = [sequence for line in (self._preempted, *self._calls) for sequence in line if not sequence.finished]
        return [*self._running, *self._filling, *waiting]

    def schedule(self, in_flight: bool) -> Action | None:
        """The next action, or None if all sequences have finished. in_flight: whether tokens of some step are unread."""
        while self._next_waiting() or self._filling or self._running:
            if self._budget > 0 and (action := self._prompts()):
                return action
            self._budget = self._piece * (FILL if 2 * len(self._running) < self._max_rows else 1)
            if action := self._step(in_flight):
                return action
        return None

    def prefilled(self, sequence: Sequence) -> list[tuple[Sequence, Copy | None]]:
        """Records that a piece of a prompt is in the cache. Returns the sequences that run from now on.

        These are none until the prompt is complete; then this sequence and the other samples of its prompt that can start
        with it, each with the copy that it needs.
        """
        self._pool.remember(sequence)
        if sequence.num_cached < len(sequence.prompt_ids):
            return []
        twins = self._filling.pop(sequence)
        self._run(sequence)
        ready: list[tuple[Sequence, Copy | None]] = [(sequence, None)]
        while (
            self._has_row()
            and (twin := _first(twins))
            and _are_twins(twin, sequence)
            and self._pool.free_blocks > len(self._running) + len(self._filling) + 1
        ):
            twins.popleft()
            copy = self._pool.fork(sequence, twin)
            self._run(twin)
            ready.append((twin, copy))
        return ready

    def arrived(self, sequence: Sequence) -> None:
        """Records that a token of the sequence was read from a step."""
        sequence.num_cached += 1
        sequence.num_in_flight -= 1

    def draft(self, sequence: Sequence, tokens: int) -> int:
        """Adds draft tokens to the step just launched: at most `tokens`, fewer where blocks are short. Returns how many.

        They take only blocks that are free: they preempt nothing, and no known prefix is forgotten for them. Before the step,
        call `drafted`; after it `arrived` for each token accepted, and `verified`.
        """
        count = self._pool.reserve_free(sequence, sequence.num_in_flight, tokens)
        sequence.num_in_flight += count
        return count

    def drafted(self, sequence: Sequence, tokens: int) -> None:
        """Records that there are only so many draft tokens, perhaps none, for what `draft` has made room for."""
        if sequence.num_in_flight > 1 + tokens:
            sequence.num_in_flight = 1 + tokens
            self._pool.trim(sequence, 1 + tokens)

    def verified(self, sequence: Sequence) -> None:
        """Records that the other draft tokens of an unfinished sequence were rejected."""
        sequence.num_in_flight = 0
        self._pool.trim(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence in any status, and frees its blocks."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            self._pool.free(sequence)
        elif sequence.status is Status.PREFILL:
            del self._filling[sequence]
            self._pool.free(sequence)
        sequence.status = Status.FINISHED  # if it is waiting, it is skipped later
        sequence.num_in_flight = 0

    def _next_waiting(self) -> Sequence | None:
        """The sequence to start next: a preempted one, or else the first of the call that has the turn."""
        first = _first(self._preempted)
        while first is None and self._calls:
            first = _first(self._calls[0])
            if first is None:
                self._calls.popleft()
        return first

    def _take_next(self) -> deque[Sequence]:
        """Removes the sequence that `_next_waiting` returned, and returns its line. A call's turn goes to the next call."""
        if self._preempted:
            self._preempted.popleft()
            return self._interrupted
        line = self._calls[0]
        line.popleft()
        self._calls.rotate(-1)
        return line

    def _prompts(self) -> Action | None:
        """The next pieces of prompts, or the return of a swapped sequence; None if neither can start."""
        if not self._filling:
            first = self._next_waiting()
            if first is None or not self._has_row():
                return None
            try:
                if not self._start(first):
                    return None
            except CacheFull as error:
                return Fail(first, error)
            if first.status is Status.SWAPPED:
                self._take_next()
                return self._back(first)
            self._fill(first)
        pieces: list[Piece] = []
        room = self._piece
        sequence: Sequence | None = next(iter(self._filling))
        while sequence is not None:
            begin, length, chunk = sequence.num_cached, len(sequence.prompt_ids), self._pool.chunk
            end = min(length, (begin + room) // chunk * chunk)
            pieces.append(Piece(sequence, begin, end))
            room -= end - begin
            if sequence.max_tokens <= 1:
                self._budget = min(self._budget, self._piece)
            sequence = self._join() if self._together and end == length and room >= chunk else None
        self._budget -= self._piece - room
        return Prefill(pieces)

    def _join(self) -> Sequence | None:
        """Starts the next prompt beside those in progress, if it can start and would share nothing that they compute."""
        sequence = self._next_waiting()
        if sequence is None or not self._has_row() or sequence.status is Status.SWAPPED:
            return None
        if any(_are_twins(sequence, other) for other in self._filling):
            return None
        if not self._start(sequence):
            return None
        self._fill(sequence)
        return sequence

    def _has_row(self) -> bool:
        return len(self._running) + len(self._filling) < self._max_rows

    def _start(self, sequence: Sequence) -> bool:
        """Reserves blocks for the sequence's tokens and the next one.

        False if that leaves fewer than the others need, or if it could share what they compute.
        """
        swapped, others = sequence.status is Status.SWAPPED, len(self._running) + len(self._filling)
        self._pool.begin(sequence)
        if self._pool.could_share(sequence, self._filling):
            self._pool.free(sequence)
            return False
        rows = sequence.num_tokens - swapped + (sequence.max_tokens > 0)
        new = rows - sequence.num_cached
        if others and self._pool.needed(sequence, new) + others > self._pool.free_blocks:
            self._pool.free(sequence)
            return False
        try:
            self._pool.reserve(sequence, new)
        except CacheFull:
            self._pool.free(sequence)
            raise
        return True

    def _fill(self, sequence: Sequence) -> None:
        sequence.status = Status.PREFILL
        self._filling[sequence] = self._take_next()

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
                if in_flight:  # a sequence may end in these steps and free its blocks
                    return Read()
                if not self._filling and len(self._running) == 1:
                    return Fail(sequence, error)
                return self._make_room()
        for sequence in going:
            sequence.num_in_flight += 1
        return Launch(going)

    def _make_room(self) -> SwapOut | None:
        """Preempts what started last. A prompt in progress starts over, but may reuse the chunks it has written."""
        if self._filling:
            victim, self._interrupted = self._filling.popitem()
            self._pool.free(victim)
            victim.status = Status.WAITING
            self._preempted.appendleft(victim)
            return None
        victim = self._running.pop()
        blocks = victim.block_table[: -(-victim.num_cached // self._pool.block_size)]
        self._pool.free(victim)
        victim.status = Status.SWAPPED
        self._preempted.appendleft(victim)
        return SwapOut(victim, blocks)


def _are_twins(a: Sequence, b: Sequence) -> bool:
    """Whether these are samples of one prompt."""
    return a.prompt_ids is b.prompt_ids and a.scoring is None and b.scoring is None


def _first(line: deque[Sequence]) -> Sequence | None:
    """The first sequence of the line that was not aborted. Those before it are dropped."""
    while line and line[0].finished:
        line.popleft()
    return line[0] if line else None
