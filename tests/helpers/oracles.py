"""The decoder's ops in float64, written apart from the engine, and the rule that judges a kernel by them."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x: (T, heads, D)."""
    half = x.shape[-1] // 2
    c, s = cos.double()[positions][:, None], sin.double()[positions][:, None]
    low, high = x.double()[..., :half], x.double()[..., half:]
    return torch.cat([low * c - high * s, high * c + low * s], -1)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return gate.double() / (1 + torch.exp(-gate.double())) * up.double()


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, starts: Tensor, lens: Tensor, scale: float
) -> Tensor:
    """Query by query, head by head."""
    block, kv_heads = k_cache.shape[1:3]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for s, length in enumerate(lens.tolist()):
        rows = [int(tables[s, n // block]) * block + n % block for n in range(length)]
        keys, values = k_cache.flatten(0, 1)[rows].double(), v_cache.flatten(0, 1)[rows].double()
        begin, end = int(starts[s]), int(starts[s + 1])
        for t in range(begin, end):
            seen = length - (end - 1 - t)
            for h in range(q.shape[1]):
                g = h // (q.shape[1] // kv_heads)
                weights = (keys[:seen, g] @ q[t, h].double() * scale).softmax(0)
                out[t, h] = weights @ values[:seen, g]
    return out


def no_worse(got: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """At most twice the plain-torch path's error, the greatest and the mean square; both take one rounding for granted."""
    assert got.shape == oracle.shape
    assert bool(torch.isfinite(got).all())
    step = torch.finfo(got.dtype).eps * float(oracle.abs().max())
    mine, its = (got.double() - oracle).abs(), (plain.double() - oracle).abs()
    assert float(mine.max()) <= 2 * float(its.max()) + step
    assert float(mine.square().mean().sqrt()) <= 2 * float(its.square().mean().sqrt()) + step / 8
