"""The inputs and activations of a run: what a plan's ops read and write besides weights and cache. Knows no model code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from baize_engine.model.config import ModelConfig


def aligned_rows(count: int, length: int, dtype: torch.dtype, device: str) -> Tensor:
    """Zeros (count, length) whose rows begin at multiples of 16 bytes; otherwise Triton recompiles each kernel."""
    return torch.zeros(count, -(-length // 4) * 4, dtype=dtype, device=device)[:, :length]


def write(target: Tensor, values: Sequence[float] | Sequence[Sequence[float]]) -> None:
    """Writes numbers to `target`, of their shape; on a GPU by a copy that is queued, for which the host does not wait."""
    if target.device.type == "cpu":
        target.numpy()[:] = values  # faster than a tensor of them and a copy
        return
    target.copy_(torch.tensor(values, dtype=target.dtype, pin_memory=True), non_blocking=True)


class CachedTokens(Protocol):
    """The part of a sequence that a run uses.

    Its first `num_cached` tokens are cached, in order, in the blocks of `block_table`. A run advances `num_cached`.
    """

    block_table: list[int]
    num_cached: int


def cache_slots(blocks: Sequence[int], block_size: int, begin: int, end: int) -> list[int]:
    """The cache rows of tokens [begin, end) of a sequence with these `blocks`, numbered across the whole cache."""
    return [blocks[n // block_size] * block_size + n % block_size for n in range(begin, end)]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The T new tokens of S sequences and their positions. `max_context` bounds the contexts, or the queries of a prompt."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64
    slots: Tensor  # (T,) int64, rows of the cache
    block_tables: Tensor  # (S, max_blocks) int32
    query_starts: Tensor  # (S + 1,) int32
    context_lens: Tensor  # (S,) int32
    max_context: int

    def first(self, tokens: int, sequences: int, max_context: int) -> Inputs:
        """Views of the first `tokens` tokens and `sequences` sequences."""
        return Inputs(
            self.ids[:tokens], self.positions[:tokens], self.slots[:tokens], self.block_tables[:sequences],
            self.query_starts[: sequences + 1], self.context_lens[:sequences], max_context,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What ranks of a model exchange, float32: this rank's part (T, N), and those of all R ranks, in order."""

    own: Tensor  # (T, N)
    all: Tensor  # (R, T, N)

    @classmethod
    def of(cls, ranks: int, tokens: int, columns: int, device: str) -> Exchanged:
        """Uninitialised buffers. A single rank's own part is the whole."""
        parts = torch.empty(ranks, tokens, columns, dtype=torch.float32, device=device)
        return cls(parts[0] if ranks == 1 else torch.empty_like(parts[0]), parts)

    def first(self, tokens: int) -> Exchanged:
        """Views of the first `tokens` tokens, each part contiguous."""
        ranks, _, columns = self.all.shape
        size = ranks * tokens * columns
        return Exchanged(self.own[:tokens], self.all.flatten()[:size].view(ranks, tokens, columns))


@dataclass(frozen=True, eq=False)
class Activations:
    """The layers' intermediate results for T tokens, in the model's activation type."""

    x: Tensor  # (T, H), the residual stream
    q: Tensor  # (T, Hq, D)
    mixed: Tensor  # (T, Hq, D), attention's output
    inner: Tensor  # (T, I), the MLP's inner values
    sums: Exchanged | None = None  # (T, H), products with matrices whose columns are split

    @classmethod
    def of(
        cls, config: ModelConfig, tokens: int, dtype: torch.dtype, device: str, ranks: int | None = None
    ) -> Activations:
        """Uninitialised buffers for `tokens` tokens. ranks: how many share the model, None if its columns are not split."""
        heads = (tokens, config.num_heads, config.head_dim)
        shapes = ((tokens, config.hidden_size), heads, heads, (tokens, config.intermediate_size))
        sums = None if ranks is None else Exchanged.of(ranks, tokens, config.hidden_size, device)
        x, q, mixed, inner = (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
        return cls(x, q, mixed, inner, sums)

    def first(self, tokens: int) -> Activations:
        """Views of the first `tokens` tokens."""
        sums = None if self.sums is None else self.sums.first(tokens)
        return Activations(self.x[:tokens], self.q[:tokens], self.mixed[:tokens], self.inner[:tokens], sums)
