"""The block pool: which blocks of the KV cache belong to which sequences, and which hold the beginnings of known prompts.

Plain numbers, no tensors. A block is free, held by one or more sequences, or kept: held by nobody, but with rows that a later
prompt may begin with, until the pool needs it. Only what prefill wrote is kept or shared, by whole chunks, so that what a
sequence reads is to the bit what it would have computed.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import Protocol

from baize_engine.errors import RequestError

BLOCK_SIZE = 16  # tokens a block: wastes at most 15 a sequence, and a block of 13B is still 160 KiB of keys a layer


class CacheFull(RequestError):
    """The pool has no blocks left for what was asked."""


@dataclass
class Sequence:
    """The cached tokens of one sequence: `length` rows in `blocks`, in order. Made by a pool.

    `chunks`: chunks of its prompt that the pool knows, the last of them by the name `chunk`.
    """

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    chunks: int = 0
    chunk: int = 0


class Tenant(Protocol):
    """One who holds blocks between calls, and can do without them until its own next call."""

    def give_way(self) -> None:
        """Frees them all."""


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens; prompts are shared by chunks of `chunk` tokens, whole blocks each."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE, chunk: int | None = None) -> None:
        chunk = chunk or block_size
        if chunk % block_size:
            raise ValueError(f"chunk is {chunk}, wanted a multiple of block_size, {block_size}")
        self.num_blocks, self.block_size, self.chunk = num_blocks, block_size, chunk
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._live: set[int] = set()  # by id(): sequences that the pool made and free() has not taken back
        # A chunk's key is the name of the chunk before it and its ids themselves: equal keys are equal prompts so far.
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, list[int]]] = {}  # key -> (name, blocks)
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}  # block -> the key of its chunk
        self._kept: dict[int, None] = {}  # blocks of known chunks that nobody holds, the longest unused first
        self._names = 0
        self.tenants: list[Tenant] = []

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds, the kept ones included."""
        return len(self._free) + len(self._kept)

    def allocate(self) -> Sequence:
        """A new, empty sequence."""
        sequence = Sequence()
        self._live.add(id(sequence))
        return sequence

    def begin(self, prompt: Ids[int]) -> Sequence:
        """A new sequence with the longest known beginning of `prompt` that leaves at least one token to compute."""
        sequence = self.allocate()
        while (end := sequence.length + self.chunk) < len(prompt):
            found = self._known.get((sequence.chunk, tuple(prompt[sequence.length : end])))
            if found is None:
                break
            sequence.chunk, blocks = found
            self._hold(blocks)
            sequence.blocks += blocks
            sequence.chunks, sequence.length = sequence.chunks + 1, end
        return sequence

    def remember(self, sequence: Sequence, prompt: Ids[int]) -> None:
        """Makes the whole chunks of `prompt` known that prefill has written to `sequence` by now."""
        self._check(sequence)
        while (end := (sequence.chunks + 1) * self.chunk) <= min(len(prompt), sequence.length):
            key = (sequence.chunk, tuple(prompt[end - self.chunk : end]))
            if key not in self._known:
                self._names += 1
                blocks = sequence.blocks[(end - self.chunk) // self.block_size : end // self.block_size]
                self._known[key] = self._names, blocks
                self._key_of.update(dict.fromkeys(blocks, key))
            sequence.chunk, sequence.chunks = self._known[key][0], sequence.chunks + 1

    def forget(self) -> None:
        """Knows no prompt any more; sequences keep what they have."""
        self._free += self._kept
        self._kept, self._known, self._key_of = {}, {}, {}

    def fork(self, sequence: Sequence) -> tuple[Sequence, tuple[int, int] | None]:
        """A second sequence with the same tokens. It shares whole blocks; of a block that is not whole it needs a copy:

        (from, to), which the caller makes before either grows. CacheFull, and nothing changed, where none is free.
        """
        self._check(sequence)
        whole = sequence.length // self.block_size
        shared, copy = sequence.blocks[:whole], None
        if sequence.length % self.block_size:
            if self.free_blocks == 0:
                raise CacheFull(f"the cache has none of {self.num_blocks} blocks free (raise cache_tokens)")
            copy = sequence.blocks[whole], self._take()
        twin = self.allocate()
        self._hold(shared)
        twin.blocks = [*shared, copy[1]] if copy else shared
        twin.length, twin.chunks, twin.chunk = sequence.length, sequence.chunks, sequence.chunk
        return twin, copy

    def needed(self, sequence: Sequence, new_tokens: int) -> int:
        """Blocks that `reserve` would take."""
        return max(0, -(-(sequence.length + new_tokens) // self.block_size) - len(sequence.blocks))

    def reserve(self, sequence: Sequence, new_tokens: int) -> None:
        """Makes room for `new_tokens` more tokens; CacheFull, and nothing changed, where the pool has too few blocks."""
        self._check(sequence)
        needed = self.needed(sequence, new_tokens)
        if needed > self.free_blocks:
            raise CacheFull(
                f"the cache has {self.free_blocks} of {self.num_blocks} blocks free, wanted {needed} more for "
                f"{sequence.length + new_tokens} tokens (raise cache_tokens)"
            )
        sequence.blocks += [self._take() for _ in range(needed)]

    def make_room(self, asking: Tenant | None = None) -> bool:
        """Asks the youngest tenant beside `asking` that holds any blocks to free them; whether that brought some."""
        for tenant in reversed(self.tenants):
            before = self.free_blocks
            if tenant is not asking:
                tenant.give_way()
            if self.free_blocks > before:
                return True
        return False

    def free(self, sequence: Sequence) -> None:
        """Gives the blocks back; their rows stay as they are until somebody else takes them. It must not be used again."""
        self._check(sequence)
        self._live.discard(id(sequence))
        for block in reversed(sequence.blocks):  # the end of a prompt is forgotten before its beginning
            self._holders[block] -= 1
            if self._holders[block] == 0 and block in self._key_of:
                self._kept[block] = None
            elif self._holders[block] == 0:
                self._free.append(block)
        sequence.blocks = []
        sequence.length = 0

    def _hold(self, blocks: list[int]) -> None:
        for block in blocks:
            self._holders[block] += 1
            self._kept.pop(block, None)

    def _take(self) -> int:
        """A block for a new holder: a free one, or the kept one that was longest unused, whose chunk is then forgotten."""
        if not self._free:
            oldest = next(iter(self._kept))
            _, blocks = self._known.pop(self._key_of[oldest])
            for block in blocks:
                del self._key_of[block]
                if block in self._kept:
                    del self._kept[block]
                    self._free.append(block)
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _check(self, sequence: Sequence) -> None:
        if id(sequence) not in self._live:
            raise ValueError("this sequence is not of this cache, or was freed already")
