"""The paged KV cache: blocks of keys and values. A block number means the same rows in every layer.

The block pool (generation/block_pool.py) knows which sequence owns which block.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from baize_engine.checkpoint.buffers import HUGE, huge_pages
from baize_engine.model.config import ModelConfig
from baize_engine.model.mirrored import Mirrored, mirrored

BLOCK_SIZE = 16  # tokens: at most 15 wasted per sequence, and a block of 13B is still 160 KiB of keys per layer


class KVCache(Mirrored):
    """Cached keys and values, each a tensor (layers, num_blocks + 1, block_size, kv heads, head_dim) of `dtype` on `device`.

    num_blocks: blocks that sequences can use. One more, `scrap_block`, follows them: padding rows of a batch write there.
    block_size: tokens per block.
    chunk: tokens; prompts share blocks of equal beginnings in multiples of it, which leaves every bit unchanged. Default:
    block_size.
    """

    mirror_name = "cache"

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        chunk: int | None = None,
    ) -> None:
        self.num_blocks, self.block_size, self.chunk = num_blocks, block_size, chunk or block_size
        shape = (config.num_layers, num_blocks + 1, block_size, config.num_kv_heads, config.head_dim)
        self.keys, self.values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
        self.scrap_block = num_blocks
        self._swapped: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def nbytes(config: ModelConfig, tokens: int, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> int:
        """Bytes of a cache of `tokens` tokens in `dtype`, rounded up to blocks, with the scrap block."""
        rows = (-(-tokens // block_size) + 1) * block_size
        return 2 * config.num_layers * rows * config.num_kv_heads * config.head_dim * dtype.itemsize

    @staticmethod
    def tokens_in(
        config: ModelConfig, memory: int, dtype: torch.dtype, block_size: int = BLOCK_SIZE, beside: int = 0
    ) -> int:
        """Tokens of the largest cache of at most `memory` bytes; below 1 if not even one block fits.

        beside: bytes of a block of another cache, which has as many.
        """
        block = KVCache.nbytes(config, 0, dtype, block_size) + beside  # of the scrap block, as of any other
        return (memory // block - 1) * block_size

    @mirrored
    def copy_block(self, source: int, target: int) -> None:
        """Copies block `source` over block `target`, in every layer."""
        for part in (self.keys, self.values):
            part[:, target].copy_(part[:, source])

    @mirrored
    def swap_out(self, number: int, blocks: Sequence[int]) -> None:
        """Keeps copies of the blocks' keys and values in host memory, under a number that is free."""
        if number in self._swapped:
            raise ValueError(f"blocks are swapped out as {number} already")
        keys, values = (part[:, list(blocks)].to("cpu") for part in (self.keys, self.values))
        self._swapped[number] = keys, values  # each (layers, blocks, block_size, kv heads, head_dim)

    @mirrored
    def swap_in(self, number: int, kept: int, blocks: Sequence[int]) -> None:
        """Writes the copies kept under `number`, but the first `kept`, into `blocks`: as many as are left, or more."""
        for part, copies in zip((self.keys, self.values), self._swapped.pop(number), strict=True):
            rows = copies[:, kept:]
            part[:, list(blocks[: rows.shape[1]])] = rows.to(part.device)

    @mirrored
    def forget(self, number: int) -> None:
        """Drops the copies kept under `number`."""
        del self._swapped[number]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeros. On the CPU only pages that are written take memory, so that a short text in a long cache costs what it uses.

    For that a layer's first blocks, which short texts take, are in small pages: to clear a huge one in each of 22 layers took
    0.03 to 0.1 s of the first token's time. The others are in huge pages where there are any.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages():
        memory.madvise(mmap.MADV_HUGEPAGE)
        for begin in range(0, size, size // shape[0]):
            page = begin - begin % mmap.PAGESIZE
            memory.madvise(mmap.MADV_NOHUGEPAGE, page, min(HUGE, size - page))
    return torch.frombuffer(memory, dtype=dtype).view(shape)
