"""Who computes what next: admission, prompts in chunks, steps, and who makes room when blocks run out. Policy only.

Plain numbers over a BlockPool; no tensors, no model. The caller asks for one action at a time and carries it out before it asks
again. Requests start in their order and the youngest makes room: what runs is older than what waits, the oldest goes on always,
and so every request finishes. One prompt is computed at a time, so that the next may begin with its chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baize_engine.model.blocks import BlockPool, CacheFull
from baize_engine.model.blocks import Sequence as Cached

Copy = tuple[int, int]  # a block's rows, from and to
FILL = 4  # pieces of prompts between two steps while more than half of the rows are empty: such steps cost more a token


@dataclass(eq=False)
class Request:
    """One sample to be made. Requests of one `group` have the same prompt and follow each other.

    `left`: steps after the prompt that were not launched yet; `ahead`: those launched whose tokens were not read.
    `sequence`: what it has in the cache, None unless it is under way. `taken_out`: tokens that are kept outside the cache.
    """

    prompt: Sequence[int]
    group: int
    left: int
    ahead: int = 0
    sequence: Cached | None = None
    taken_out: int = 0

    @property
    def cached(self) -> Cached:
        """The sequence of a request that is under way."""
        if self.sequence is None:
            raise ValueError("this request is not under way")
        return self.sequence


@dataclass(frozen=True)
class Prefill:
    """Run ids [begin, end) of the prompt, then call `wrote`."""

    request: Request
    begin: int
    end: int


@dataclass(frozen=True)
class Launch:
    """Run one step in which each of these makes a token, then, now or later, `read` and `finish`."""

    requests: Sequence[Request]


@dataclass(frozen=True)
class Read:
    """Read the oldest step's tokens; before that nothing can be done."""


@dataclass(frozen=True)
class TakeOut:
    """Copy these blocks, the request's `taken_out` tokens, to a safe place; they are free already."""

    request: Request
    blocks: Sequence[int]


@dataclass(frozen=True)
class PutBack:
    """Write what was taken out into the request's blocks, but for the first `kept`; it goes on where it was."""

    request: Request
    kept: int


Action = Prefill | Launch | Read | TakeOut | PutBack


class Scheduler:
    """The policy over `pool`, for at most `max_rows` samples at a time.

    Prompts run in pieces of at most `piece` tokens that end at multiples of the pool's chunk, about `piece` tokens of them
    between two steps, or FILL times as many.
    """

    def __init__(self, pool: BlockPool, requests: Iterable[Request], max_rows: int, piece: int) -> None:
        if piece < pool.chunk:
            raise ValueError(f"piece is {piece}, wanted at least the pool's chunk, {pool.chunk}")
        self._pool, self._max_rows, self._piece = pool, max_rows, piece
        self._waiting = deque(requests)
        self._filling: Request | None = None  # its prompt is being computed; it is the youngest under way
        self._running: list[Request] = []  # in the order of their starts
        self._budget = FILL * piece  # tokens of prompts that may still be computed before the next step

    def next(self, in_flight: bool) -> Action | None:
        """What to do now; None where all is done. `in_flight`: some step's tokens were not read yet.

        CacheFull where a single request needs more blocks than are to be had.
        """
        while self._waiting or self._filling or self._running:
            if self._budget > 0 and (action := self._prompt()):
                return action
            self._budget = self._piece * (FILL if 2 * len(self._running) < self._max_rows else 1)
            if action := self._step(in_flight):
                return action
        return None

    def wrote(self, request: Request) -> list[tuple[Request, Copy | None]]:
        """To be called when a piece of a prompt is in the cache. What has all of its prompt by that: nothing, or the request

        and those of its group that start with it, each with the block that has to be copied for it.
        """
        self._pool.remember(request.cached, request.prompt)
        if request.cached.length < len(request.prompt):
            return []
        self._filling = None
        self._running.append(request)
        ready: list[tuple[Request, Copy | None]] = [(request, None)]
        while (
            self._has_row()
            and self._waiting
            and self._waiting[0].group == request.group
            and self._pool.free_blocks > len(self._running) + 1
        ):
            twin = self._waiting.popleft()
            twin.sequence, copy = self._pool.fork(request.cached)
            self._running.append(twin)
            ready.append((twin, copy))
        return ready

    def read(self, request: Request) -> None:
        """A step's token of the request was read."""
        request.cached.length += 1
        request.ahead -= 1

    def finish(self, request: Request) -> None:
        """The request has all its tokens, or is not wanted any more: its blocks are free."""
        if request.sequence is None:  # it was taken out
            self._waiting.remove(request)
            return
        self._running.remove(request)
        self._release(request)

    def give_way(self) -> list[TakeOut]:
        """Sends all that is under way back to wait, for another's sake, when every step was read."""
        found = []
        while self._filling or self._running:
            action = self._make_room()
            if action is not None:
                found.append(action)
        return found

    def close(self) -> None:
        """Ends all that is under way, and forgets the rest."""
        for request in [*self._running, *([self._filling] if self._filling else [])]:
            self._release(request)
        self._waiting, self._running, self._filling = deque(), [], None

    def _prompt(self) -> Action | None:
        """The next piece of a prompt, or the return of a request, where one can start."""
        if self._filling is None:
            if not (self._waiting and self._has_row() and self._start(self._waiting[0])):
                return None
            request = self._waiting.popleft()
            if request.taken_out:
                return self._back(request)
            self._filling = request
        request, begin = self._filling, self._filling.cached.length
        chunk = self._pool.chunk
        end = min(len(request.prompt), (begin + self._piece) // chunk * chunk)
        self._budget -= end - begin
        return Prefill(request, begin, end)

    def _has_row(self) -> bool:
        return len(self._running) + (self._filling is not None) < self._max_rows

    def _start(self, request: Request) -> bool:
        """Gives the request blocks for what it has and its next token, if that leaves one to each that runs."""
        sequence = self._pool.begin(request.prompt)
        new = max(len(request.prompt), request.taken_out) + 1 - sequence.length
        if self._running and self._pool.needed(sequence, new) + len(self._running) > self._pool.free_blocks:
            self._pool.free(sequence)
            return False
        try:
            self._pool.reserve(sequence, new)
        except CacheFull:
            self._pool.free(sequence)
            raise
        request.sequence = sequence
        return True

    def _back(self, request: Request) -> PutBack:
        kept = request.cached.length // self._pool.block_size
        request.cached.length, request.taken_out = request.taken_out, 0
        self._running.append(request)
        return PutBack(request, kept)

    def _step(self, in_flight: bool) -> Action | None:
        going = [request for request in self._running if request.left]
        if not going:
            return Read() if self._running else None
        for request in going:
            try:
                self._pool.reserve(request.cached, request.ahead + 1)
            except CacheFull:
                if in_flight:  # some may end in these
                    return Read()
                if self._filling is None and len(self._running) == 1:
                    raise
                return self._make_room()
        for request in going:
            request.left -= 1
            request.ahead += 1
        return Launch(going)

    def _make_room(self) -> TakeOut | None:
        """Sends the youngest back to wait. A prompt that was under way begins anew, perhaps with its chunks as a prefix."""
        if self._filling is not None:
            victim, self._filling = self._filling, None
            self._waiting.appendleft(victim)
            self._release(victim)
            return None
        victim = self._running.pop()
        self._waiting.appendleft(victim)
        victim.taken_out = victim.cached.length
        blocks = victim.cached.blocks[: -(-victim.taken_out // self._pool.block_size)]
        self._release(victim)
        return TakeOut(victim, blocks)

    def _release(self, request: Request) -> None:
        self._pool.free(request.cached)
        request.sequence = None
