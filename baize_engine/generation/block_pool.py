"""The block pool: which sequences hold which blocks of the KV cache, and which blocks contain known prefixes of prompts.

Plain numbers, no tensors. A block is free, held by one or more sequences, or kept: held by none, but with rows that a later
prompt may reuse until the pool needs the block. Only whole chunks that prefill wrote are kept or shared, so that a sequence
reads exactly the bits that it would have computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from baize_engine.errors import RequestError
from baize_engine.generation.sequence import Sequence
from baize_engine.model.kv_cache import BLOCK_SIZE

# A chunk's key is the name of the chunk before it and its own ids: equal keys mean equal prompts so far.
Key = tuple[int, tuple[int, ...]]


class CacheFull(RequestError):
    """The pool has too few free blocks for a request."""


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. Prompts share prefixes in chunks of `chunk` tokens, each of whole blocks."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE, chunk: int | None = None) -> None:
        chunk = chunk or block_size
        if chunk % block_size:
            raise ValueError(f"chunk is {chunk}, wanted a multiple of block_size, {block_size}")
        self.num_blocks, self.block_size, self.chunk = num_blocks, block_size, chunk
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._sequences: set[Sequence] = set()  # those that hold blocks, or may
        self._known: dict[Key, tuple[int, list[int]]] = {}  # key -> (name, blocks)
        self._key_of: dict[int, Key] = {}  # block -> the key of its chunk
        self._kept: dict[int, None] = {}  # blocks of known chunks that no sequence holds, least recently used first
        self._names = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds, including kept ones."""
        return len(self._free) + len(self._kept)

    def begin(self, sequence: Sequence) -> None:
        """Gives an empty sequence the blocks of the longest known prefix of its prompt, at most `num_shareable` tokens."""
        self._sequences.add(sequence)
        while (key := self._next_key(sequence, sequence.num_shareable)) in self._known:
            sequence.chunk_name, blocks = self._known[key]
            self._hold(blocks)
            sequence.block_table += blocks
            sequence.num_chunks += 1
            sequence.num_cached = sequence.num_chunks * self.chunk

    def could_share(self, sequence: Sequence, others: Iterable[Sequence]) -> bool:
        """Whether the next chunk of the prompt is one that the `others` compute next, so that it had better wait for them."""
        key = self._next_key(sequence, sequence.num_shareable)
        return key is not None and any(key == self._next_key(other, len(other.prompt_ids)) for other in others)

    def remember(self, sequence: Sequence) -> None:
        """Makes the whole chunks of its prompt that prefill has written available to other prompts."""
        self._check(sequence)
        size = self.chunk // self.block_size
        written = min(len(sequence.prompt_ids), sequence.num_cached)
        while key := self._next_key(sequence, written):
            if key not in self._known:
                self._names += 1
                blocks = sequence.block_table[sequence.num_chunks * size : (sequence.num_chunks + 1) * size]
                self._known[key] = self._names, blocks
                self._key_of.update(dict.fromkeys(blocks, key))
            sequence.chunk_name, sequence.num_chunks = self._known[key][0], sequence.num_chunks + 1

    def forget(self) -> None:
        """Forgets all known prefixes. Sequences keep their blocks."""
        self._free += self._kept
        self._kept, self._known, self._key_of = {}, {}, {}

    def fork(self, sequence: Sequence, twin: Sequence) -> tuple[int, int] | None:
        """Gives the empty `twin` the cached tokens of `sequence`: full blocks are shared, a partly filled last one is new.

        Returns (from, to), the block to copy before either sequence grows, or None if all blocks are full. CacheFull if no
        block is free; nothing is changed then.
        """
        self._check(sequence)
        whole = sequence.num_cached // self.block_size
        shared, copy = sequence.block_table[:whole], None
        if sequence.num_cached % self.block_size:
            if self.free_blocks == 0:
                raise CacheFull(f"the cache has 0 of {self.num_blocks} blocks free, wanted 1 (raise cache_tokens)")
            copy = sequence.block_table[whole], self._take()
        self._sequences.add(twin)
        self._hold(shared)
        twin.block_table = [*shared, copy[1]] if copy else shared
        twin.num_cached, twin.num_chunks = sequence.num_cached, sequence.num_chunks
        twin.chunk_name = sequence.chunk_name
        return copy

    def needed(self, sequence: Sequence, new_tokens: int) -> int:
        """The number of blocks that `reserve` would take."""
        return max(0, -(-(sequence.num_cached + new_tokens) // self.block_size) - len(sequence.block_table))

    def reserve(self, sequence: Sequence, new_tokens: int) -> None:
        """Adds blocks for `new_tokens` more tokens. CacheFull if the pool has too few; nothing is changed then."""
        self._sequences.add(sequence)
        needed = self.needed(sequence, new_tokens)
        if needed > self.free_blocks:
            raise CacheFull(
                f"the cache has {self.free_blocks} of {self.num_blocks} blocks free, wanted {needed} more for "
                f"{sequence.num_cached + new_tokens} tokens (raise cache_tokens)"
            )
        sequence.block_table += [self._take() for _ in range(needed)]

    def reserve_free(self, sequence: Sequence, new_tokens: int, more: int) -> int:
        """Adds blocks for up to `more` tokens after `new_tokens` that have theirs, without forgetting a prefix.

        Returns for how many there is room.
        """
        room = (len(sequence.block_table) + len(self._free)) * self.block_size - sequence.num_cached - new_tokens
        count = min(more, room)
        self.reserve(sequence, new_tokens + count)
        return count

    def trim(self, sequence: Sequence, new_tokens: int = 0) -> None:
        """Returns the sequence's blocks after its cached tokens and `new_tokens` more to the pool."""
        self._check(sequence)
        kept = -(-(sequence.num_cached + new_tokens) // self.block_size)
        self._release(sequence.block_table[kept:])
        del sequence.block_table[kept:]

    def free(self, sequence: Sequence) -> None:
        """Returns the sequence's blocks to the pool and empties it. Their rows stay readable until they are taken again."""
        self._check(sequence)
        self._sequences.discard(sequence)
        self._release(sequence.block_table)
        sequence.block_table, sequence.num_cached = [], 0
        sequence.num_chunks = sequence.chunk_name = 0

    def _next_key(self, sequence: Sequence, most: int) -> Key | None:
        """The key of the prompt's next chunk, or None if that ends after `most` tokens."""
        begin = sequence.num_chunks * self.chunk
        end = begin + self.chunk
        return (sequence.chunk_name, tuple(sequence.prompt_ids[begin:end])) if end <= most else None

    def _hold(self, blocks: list[int]) -> None:
        for block in blocks:
            self._holders[block] += 1
            self._kept.pop(block, None)

    def _release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):  # so that the end of a prompt is forgotten before its beginning
            self._holders[block] -= 1
            if self._holders[block] == 0 and block in self._key_of:
                self._kept[block] = None
            elif self._holders[block] == 0:
                self._free.append(block)

    def _take(self) -> int:
        """A block for a new holder: a free one, or the least recently used kept one, whose chunk is then forgotten."""
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
        if sequence not in self._sequences:
            raise ValueError("this sequence has nothing in this cache, or was freed already")
