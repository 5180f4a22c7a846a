"""The paged KV cache: memory in blocks, for every layer. One block number means the same rows in every layer.

Whose block is whose, the block pool knows (generation/block_pool.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from baize_engine.model.config import ModelConfig

BLOCK_SIZE = 16  # tokens a block: wastes at most 15 a sequence, and a block of 13B is still 160 KiB of keys a layer


class KVCache:
    """Keys and values, each (layers, blocks + 1, block, kv heads, head_dim).

    chunk: tokens by which equal beginnings of prompts may share blocks without a change of any bit. The block after the
    last, `scrap_block`, belongs to nobody: rows that only fill up a batch write there.
    """

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

    @staticmethod
    def nbytes(config: ModelConfig, tokens: int, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> int:
        """Bytes of a cache that holds `tokens` tokens."""
        rows = (-(-tokens // block_size) + 1) * block_size
        return 2 * config.num_layers * rows * config.num_kv_heads * config.head_dim * dtype.itemsize

    @staticmethod
    def tokens_in(config: ModelConfig, memory: int, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> int:
        """Tokens of the largest cache of at most `memory` bytes; below 1 where there is none."""
        scrap = KVCache.nbytes(config, 0, dtype, block_size)  # of one block
        return (memory // scrap - 1) * block_size

    def copy_block(self, source: int, target: int) -> None:
        """Copies the rows of one block into another, in every layer."""
        for part in (self.keys, self.values):
            part[:, target].copy_(part[:, source])

    def swap_out(self, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies of the blocks' keys and values in the host's memory, (layers, blocks, block, kv heads, head_dim)."""
        keys, values = (part[:, list(blocks)].to("cpu") for part in (self.keys, self.values))
        return keys, values

    def swap_in(self, saved: tuple[Tensor, Tensor], blocks: Sequence[int]) -> None:
        """Writes what `swap_out` gave to other blocks."""
        for part, rows in zip((self.keys, self.values), saved, strict=True):
            part[:, list(blocks)] = rows.to(part.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeros that take memory on the CPU only where they are written: a short text in a long cache costs what it uses."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = numpy.zeros(size + 64, numpy.uint8)
    begin = -memory.ctypes.data % 64  # of a cache line
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)
