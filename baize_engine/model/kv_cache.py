"""The paged KV cache: the memory of a pool of blocks, for every layer. One block number means the same rows in every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence as Numbers

import numpy
import torch
from torch import Tensor

from baize_engine.model.blocks import BLOCK_SIZE, BlockPool, CacheFull, Sequence
from baize_engine.model.config import ModelConfig

__all__ = ["BLOCK_SIZE", "CacheFull", "KVCache", "Sequence"]


class KVCache(BlockPool):
    """A BlockPool with its keys and values, each (layers, blocks + 1, block, kv heads, head_dim).

    The block after the last, `scrap_block`, belongs to nobody: rows that only fill up a batch write there.
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
        super().__init__(num_blocks, block_size, chunk)
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
        """The rows of one block into another, in every layer."""
        for part in (self.keys, self.values):
            part[:, target].copy_(part[:, source])

    def take_out(self, blocks: Numbers[int]) -> tuple[Tensor, Tensor]:
        """Copies of the blocks' keys and values in the host's memory, (layers, blocks, block, kv heads, head_dim)."""
        keys, values = (part[:, list(blocks)].to("cpu") for part in (self.keys, self.values))
        return keys, values

    def put_back(self, saved: tuple[Tensor, Tensor], blocks: Numbers[int]) -> None:
        """Writes what `take_out` gave to other blocks."""
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
