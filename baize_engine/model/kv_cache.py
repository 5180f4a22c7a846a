"""The paged KV cache: a pool of fixed-size blocks for every layer, and for each sequence the list of its blocks.

One block number means the same rows in every layer, so that a sequence has one table. Knows no model and no scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy
import torch

from baize_engine.errors import RequestError
from baize_engine.model.config import ModelConfig

BLOCK_SIZE = 16  # tokens a block: wastes at most 15 a sequence, and a block of 13B is still 160 KiB of keys a layer


class CacheFull(RequestError):
    """The pool has no blocks left for what was asked."""


@dataclass
class Sequence:
    """The cached tokens of one sequence: `length` rows in `blocks`, in order. Made by KVCache.allocate."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """`num_blocks` blocks of `block_size` tokens, keys and values, each (layers, blocks + 1, block, kv heads, head_dim).

    The block after the last, `scrap_block`, belongs to nobody: rows that only fill up a batch write there.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        shape = (config.num_layers, num_blocks + 1, block_size, config.num_kv_heads, config.head_dim)
        self.keys, self.values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
        self.num_blocks, self.block_size, self.scrap_block = num_blocks, block_size, num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._live: set[int] = set()  # by id(): sequences that allocate() made and free() has not taken back

    @staticmethod
    def nbytes(config: ModelConfig, tokens: int, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> int:
        """Bytes of a cache that holds `tokens` tokens."""
        rows = (-(-tokens // block_size) + 1) * block_size
        return 2 * config.num_layers * rows * config.num_kv_heads * config.head_dim * dtype.itemsize

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def allocate(self) -> Sequence:
        """A new, empty sequence."""
        sequence = Sequence()
        self._live.add(id(sequence))
        return sequence

    def reserve(self, sequence: Sequence, new_tokens: int) -> None:
        """Makes room for `new_tokens` more tokens; CacheFull, and nothing changed, where the pool has too few blocks."""
        self._check(sequence)
        needed = -(-(sequence.length + new_tokens) // self.block_size) - len(sequence.blocks)
        if needed > len(self._free):
            raise CacheFull(
                f"the cache has {len(self._free)} of {self.num_blocks} blocks free, wanted {needed} more for "
                f"{sequence.length + new_tokens} tokens (raise cache_tokens)"
            )
        for _ in range(needed):
            sequence.blocks.append(self._free.pop())

    def free(self, sequence: Sequence) -> None:
        """Gives the blocks back. The sequence must not be used again."""
        self._check(sequence)
        self._live.discard(id(sequence))
        self._free.extend(reversed(sequence.blocks))
        sequence.blocks.clear()
        sequence.length = 0

    def slots(self, sequence: Sequence, begin: int, end: int) -> list[int]:
        """The cache rows of the sequence's tokens [begin, end), counted through all blocks."""
        size = self.block_size
        return [sequence.blocks[n // size] * size + n % size for n in range(begin, end)]

    def _check(self, sequence: Sequence) -> None:
        if id(sequence) not in self._live:
            raise ValueError("this sequence is not of this cache, or was freed already")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeros that take memory on the CPU only where they are written: a short text in a long cache costs what it uses."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = numpy.zeros(size + 64, numpy.uint8)
    begin = -memory.ctypes.data % 64  # of a cache line
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)
