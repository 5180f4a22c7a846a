"""Queries and paged caches for tests of attention."""

from __future__ import annotations

import torch


def paged(
    counts: list[int], lens: list[int], heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """q, caches whose unused rows are NaN, shuffled block tables, starts and lens."""
    g = torch.Generator().manual_seed(sum(lens))
    needed = [-(-length // 16) for length in lens]
    order = torch.randperm(sum(needed) + 3, generator=g).tolist()
    tables = torch.zeros(len(lens), max(needed) + 1, dtype=torch.int32)
    k, v = (torch.full((len(order), 16, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    for s, length in enumerate(lens):
        blocks = [order.pop() for _ in range(needed[s])]
        tables[s, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        for n in range(length):
            for cache in (k, v):
                cache[blocks[n // 16], n % 16] = torch.randn(kv_heads, dim, generator=g).to(dtype)
    q = torch.randn(sum(counts), heads, dim, generator=g).to(dtype)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    return q, k, v, tables, starts, torch.tensor(lens, dtype=torch.int32)
