"""Rotary embedding and the write to the paged cache, for prompts; decode steps do it in the product's epilogue.

q'[d], q'[d + D/2] = q[d] cos - q[d + D/2] sin, q[d + D/2] cos + q[d] sin      d < D/2, and likewise for k
"""

import torch
import triton
import triton.language as tl

from .launch import check, pdl, wait_for_inputs

PAIRS = 512  # pairs of elements that a program rotates


@triton.jit
def _rope_store_kernel(
    parts_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr, q_ptr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Token program_id(0), pairs from program_id(1) * PAIRS of q's heads, then k's, then v's."""
    HALF: tl.constexpr = D // 2
    ALL: tl.constexpr = (HEADS + 2 * KV_HEADS) * HALF
    t = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    head, j = pair // HALF, pair % HALF
    inside = pair < ALL
    wait_for_inputs(PDL)
    position, slot = tl.load(positions_ptr + t), tl.load(slots_ptr + t)
    source = parts_ptr + t * (2 * ALL) + head * D + j
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos_ptr + position * HALF + j, mask=inside, other=0.0)
    s = tl.load(sin_ptr + position * HALF + j, mask=inside, other=0.0)
    turned_first, turned_second = first * c - second * s, second * c + first * s
    kind = k_ptr.dtype.element_ty
    is_q = inside & (head < HEADS)
    to = q_ptr + (t * HEADS + head) * D + j
    tl.store(to, turned_first.to(q_ptr.dtype.element_ty), mask=is_q)
    tl.store(to + HALF, turned_second.to(q_ptr.dtype.element_ty), mask=is_q)
    is_k = inside & (head >= HEADS) & (head < HEADS + KV_HEADS)
    at = (slot * KV_HEADS + head - HEADS) * D + j
    tl.store(k_ptr + at, turned_first.to(kind), mask=is_k)
    tl.store(k_ptr + at + HALF, turned_second.to(kind), mask=is_k)
    is_v = inside & (head >= HEADS + KV_HEADS)
    at -= KV_HEADS * D
    tl.store(v_ptr + at, first.to(kind), mask=is_v)
    tl.store(v_ptr + at + HALF, second.to(kind), mask=is_v)


def rope_and_store(
    parts: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, k_cache: torch.Tensor,
    v_cache: torch.Tensor, slots: torch.Tensor, *, q: torch.Tensor,
) -> None:  # fmt: skip
    """`reference.rope_and_store` of the joined products `parts` (T, (Hq + 2 Hkv) D); writes the rotated q to q (T, Hq, D)."""
    rows, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    width = (heads + 2 * kv_heads) * dim
    check("parts", parts, (rows, width), q.device)
    check("q", q, (rows, heads, dim), q.device)
    grid = rows, triton.cdiv(width // 2, PAIRS)
    _rope_store_kernel[grid](
        parts, cos, sin, positions, slots, k_cache, v_cache, q,
        HEADS=heads, KV_HEADS=kv_heads, D=dim, PAIRS=PAIRS, num_warps=4, **pdl(q.device),
    )  # fmt: skip
