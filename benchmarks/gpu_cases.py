"""Cases of kernels that are separate only on a GPU: those of prompts, a norm apart from its product, and diff_add."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from kernel_cases import BLOCK, Case, Machine
from torch import Tensor

from baize_engine.kernels import reference
from baize_engine.model.config import ModelConfig
from baize_engine.model.rope import tables


def norms(m: Machine, config: ModelConfig, rows: int) -> Case:
    """A norm by itself, which the products do themselves for up to 8 rows."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    xs = [m.values(rows, hidden) for _ in range(m.copies(rows * hidden * 2))]
    gain, out = m.gains(hidden), m.values(rows, hidden)
    return Case("rms_norm", "float16", rows, 0, [partial(m.ops.rms_norm, x, gain, eps, out=out) for x in xs], [out],
                [lambda x=x: [F.rms_norm(x, (hidden,), gain, eps)] for x in xs],
                lambda: [reference.rms_norm(xs[0], gain, eps)])  # fmt: skip


def long(m: Machine, config: ModelConfig, tokens: int) -> Iterator[Case]:
    """Rotation and SwiGLU of a prompt, and diff_add of a matrix of the MLP."""
    heads, kv, dim, inner = config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
    cos, sin = tables(config, tokens, str(torch.get_default_device()))
    parts, places = m.values(tokens, (heads + 2 * kv) * dim), torch.randperm(tokens)
    mine, theirs, right = (
        [m.cache(tokens, heads, dim), *m.cache(2, -(-tokens // BLOCK), BLOCK, kv, dim)] for _ in range(3)
    )

    def plain(out: list[Tensor]) -> list[Tensor]:
        q, k, v = parts.unflatten(1, (-1, dim)).split([heads, kv, kv], 1)
        out[0].copy_(q)
        reference.rope_and_store(out[0], k, v, cos, sin, places, out[1], out[2], places)
        return out

    turn = partial(m.ops.rope_and_store, parts, cos, sin, places, mine[1], mine[2], places, q=mine[0])
    yield Case(
        "rope_and_store prefill", "float16", tokens, 0, [turn], mine, [partial(plain, theirs)], partial(plain, right)
    )
    joined, out = m.values(tokens, 2 * inner), m.values(tokens, inner)
    gate, up = joined.chunk(2, 1)
    yield Case("silu_mul prefill", "float16", tokens, 0, [partial(m.ops.silu_mul, joined, out=out)], [out],
               [lambda: [F.silu(gate) * up]], lambda: [reference.silu_mul(gate, up)])  # fmt: skip
    size = config.hidden_size * inner
    base, diff, chunks = m.values(size, scale=0.02), torch.randn(size) * 0.002, -(-size // reference.CHUNK)
    added, total = torch.empty_like(base), torch.empty_like(base)
    sums, counts = torch.empty(chunks, dtype=torch.float64), torch.empty(2, chunks, dtype=torch.int32)

    def exact() -> list[Tensor]:
        result, stats = reference.diff_add(base, diff, torch.float16)
        return [result, stats.chunk_sums]

    yield Case("diff_add", "float16+float32", config.hidden_size, 0,
               [partial(m.ops.diff_add, base, diff, added, sums, counts)], [added, sums],
               [lambda: [torch.add(diff, base, out=total)]], exact, bound=0.0)  # fmt: skip
