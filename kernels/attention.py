"""Attention over the paged cache on a GPU: softmax(q K^T scale) V, accumulated in float32.

Decode: one query for each sequence. A program handles one key head of one sequence, with the query heads that share it, over
SPLIT tokens of the context, and computes one softmax over them; a second kernel joins the splits. SPLIT is a fixed number of
tokens, never a number of splits, so a sequence's result depends only on its own context; sums are folded by pairs, so it does
not depend on how a split is loaded either.

Prefill: BLOCK_M queries of one head walk the keys up to their own position, from token 0 in tiles, with a running maximum.

Keys and values of token n are in row table[n // BLOCK] * BLOCK + n % BLOCK of the cache, (rows, Hkv, D).
"""

import torch
import triton
import triton.language as tl

from . import tuned
from .launch import check, check_device, interpreting, pdl, prefetch, wait_for_inputs

# bytes of a value -> tokens of context that a decode program reads: 64 KiB of keys and values at D = 128
SPLITS = {2: 128, 4: 64}
JOINED = 16  # splits that are joined at a time
LOG2E = 1.4426950408889634


@triton.jit
def _rows_of(
    block, token, kv_head, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PADDED_D: tl.constexpr
):
    """Offsets (tokens, PADDED_D) of the keys (or values) of `token`, which are in the cache's blocks `block`."""
    row = (block.to(tl.int64) * BLOCK + token % BLOCK) * KV_HEADS + kv_head
    return row[:, None] * D + tl.arange(0, PADDED_D)[None, :]


@triton.jit
def _ask_for_split(
    k_ptr, v_ptr, table, begin, length, table_stride, kv_head, KV_HEADS: tl.constexpr, D: tl.constexpr,
    PADDED_D: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Prefetch a split's keys and values into the L2 cache. Reads block numbers without waiting for `length`."""
    LINE: tl.constexpr = 1024 // k_ptr.dtype.element_ty.primitive_bitwidth  # values in 128 bytes
    LINES: tl.constexpr = (PADDED_D + LINE - 1) // LINE
    token = begin + tl.arange(0, SPLIT)
    block = tl.load(table + token // BLOCK, mask=token // BLOCK < table_stride, other=0)
    row = (block.to(tl.int64) * BLOCK + token % BLOCK) * KV_HEADS + kv_head
    at = tl.where(token < length, row, 0)[:, None] * D + (tl.arange(0, LINES) * LINE)[None, :]
    prefetch(k_ptr + at)
    prefetch(v_ptr + at)


@triton.jit
def _sums_of_rows(values, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Sum `values` (ROWS, COUNT) over COUNT, 64 or 128, adjacent pairs first, as `norm.sum_of` does."""
    if COUNT == 128:
        values = tl.sum(tl.reshape(values, (ROWS, 64, 2)), axis=2)
    values = tl.sum(tl.reshape(values, (ROWS, 32, 2)), axis=2)
    values = tl.sum(tl.reshape(values, (ROWS, 16, 2)), axis=2)
    values = tl.sum(tl.reshape(values, (ROWS, 8, 2)), axis=2)
    values = tl.sum(tl.reshape(values, (ROWS, 4, 2)), axis=2)
    values = tl.sum(tl.reshape(values, (ROWS, 2, 2)), axis=2)
    return tl.sum(values, axis=1)


@triton.jit(do_not_specialize=["splits"])
def _attention_decode_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, lens_ptr, parts_ptr, stats_ptr, table_stride, scale, splits,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, FETCH_FIRST: tl.constexpr, ASSEMBLY: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Sequence program_id(0), key head program_id(1), tokens from program_id(2) * SPLIT. SHARED query heads share a key head.

    A split is loaded as one or two TILEs. All of it is prefetched (with ASSEMBLY, which the interpreter lacks) before the
    first keys are loaded, because a load reaches the tensor cores before the next load begins. FETCH_FIRST prefetches before
    the kernel waits: no kernel of a step writes block numbers, and the length read there only limits the prefetch.
    parts (S, Hq, splits, D) float32 receives the weighted sum of values, stats (S, Hq, splits, 2) its maximum and its sum of
    weights, with powers of two in place of e.
    """
    tl.static_assert(SPLIT == TILE or SPLIT == 2 * TILE)
    s, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = split * SPLIT
    token = begin + tl.arange(0, TILE)
    table = tables_ptr + s.to(tl.int64) * table_stride
    if FETCH_FIRST and ASSEMBLY:
        hint = tl.load(lens_ptr + s, cache_modifier=".cg")
        _ask_for_split(k_ptr, v_ptr, table, begin, hint, table_stride, kv_head, KV_HEADS, D, PADDED_D, BLOCK, SPLIT)
    wait_for_inputs(PDL)
    length = tl.load(lens_ptr + s)
    if ASSEMBLY and not FETCH_FIRST:
        _ask_for_split(k_ptr, v_ptr, table, begin, length, table_stride, kv_head, KV_HEADS, D, PADDED_D, BLOCK, SPLIT)
    if begin >= length:
        return
    seen = token < length
    block = tl.load(table + token // BLOCK, mask=seen, other=0)  # a second time, from the L1 cache
    if TILE < SPLIT:
        seen2 = token + TILE < length
        block2 = tl.load(table + (token + TILE) // BLOCK, mask=seen2, other=0)
    d = tl.arange(0, PADDED_D)
    at = _rows_of(block, token, kv_head, KV_HEADS, D, BLOCK, PADDED_D)
    inside = seen[:, None] & (d < D)[None, :]
    k = tl.load(k_ptr + at, mask=inside, other=0.0)
    if TILE < SPLIT:
        at2 = _rows_of(block2, token + TILE, kv_head, KV_HEADS, D, BLOCK, PADDED_D)
        inside2 = seen2[:, None] & (d < D)[None, :]
        k2 = tl.load(k_ptr + at2, mask=inside2, other=0.0)
    v = tl.load(v_ptr + at, mask=inside, other=0.0)
    if TILE < SPLIT:
        v2 = tl.load(v_ptr + at2, mask=inside2, other=0.0)
    HEADS: tl.constexpr = KV_HEADS * SHARED
    r = tl.arange(0, ROWS)
    head = s.to(tl.int64) * HEADS + kv_head * SHARED + r
    q = tl.load(q_ptr + head[:, None] * D + d[None, :], mask=(r < SHARED)[:, None] & (d < D)[None, :], other=0.0)
    kind = k_ptr.dtype.element_ty
    q = q.to(kind)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    top = tl.max(scores, axis=1)
    if TILE < SPLIT:
        scores2 = tl.dot(q, tl.trans(k2), input_precision="ieee") * scale
        scores2 = tl.where(seen2[None, :], scores2, float("-inf"))
        top = tl.maximum(top, tl.max(scores2, axis=1))
    weights = tl.exp2(scores - top[:, None])
    total = _sums_of_rows(weights, ROWS, TILE)
    acc = tl.dot(weights.to(kind), v, input_precision="ieee")
    if TILE < SPLIT:
        weights2 = tl.exp2(scores2 - top[:, None])
        total += _sums_of_rows(weights2, ROWS, TILE)
        acc = tl.dot(weights2.to(kind), v2, acc, input_precision="ieee")
    part = head * splits + split
    tl.store(parts_ptr + part[:, None] * D + d[None, :], acc, mask=(r < SHARED)[:, None] & (d < D)[None, :])
    tl.store(stats_ptr + part * 2, top, mask=r < SHARED)
    tl.store(stats_ptr + part * 2 + 1, total, mask=r < SHARED)


@triton.jit(do_not_specialize=["splits"])
def _attention_join_kernel(
    parts_ptr, stats_ptr, lens_ptr, out_ptr, splits,
    HEADS: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, SPLIT: tl.constexpr, JOINED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Join the splits of query head program_id(1) of sequence program_id(0), JOINED at a time, in order."""
    wait_for_inputs(PDL)
    s = tl.program_id(0)
    head = s.to(tl.int64) * HEADS + tl.program_id(1)
    d = tl.arange(0, PADDED_D)
    used = tl.minimum(tl.cdiv(tl.load(lens_ptr + s), SPLIT), splits)  # a context over `max_context` has no more parts
    top = float("-inf")
    total = 0.0
    acc = tl.zeros((PADDED_D,), dtype=tl.float32)
    for first in range(0, used, JOINED):
        split = first + tl.arange(0, JOINED)
        there = split < used
        part = head * splits + split
        tops = tl.load(stats_ptr + part * 2, mask=there, other=float("-inf"))
        weights = tl.load(stats_ptr + part * 2 + 1, mask=there, other=0.0)
        values = tl.load(parts_ptr + part[:, None] * D + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(tops, axis=0))
        old, new = tl.exp2(top - higher), tl.exp2(tops - higher)
        total = total * old + tl.sum(weights * new, axis=0)
        acc = acc * old + tl.sum(values * new[:, None], axis=0)
        top = higher
    tl.store(out_ptr + head * D + d, (acc / total).to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _attention_prefill_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, starts_ptr, lens_ptr, out_ptr, table_stride, scale,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of head program_id(1) of sequence program_id(2); program_id(0) counts from the last ones."""
    wait_for_inputs(PDL)
    s, head = tl.program_id(2), tl.program_id(1)
    first, last = tl.load(starts_ptr + s), tl.load(starts_ptr + s + 1)
    count, length = last - first, tl.load(lens_ptr + s)
    m = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if m >= count:
        return
    KV_HEADS: tl.constexpr = HEADS // SHARED
    r, d = m + tl.arange(0, BLOCK_M), tl.arange(0, PADDED_D)
    position = length - count + r  # of each query
    at = ((first + r).to(tl.int64) * HEADS + head)[:, None] * D + d[None, :]
    inside = (r < count)[:, None] & (d < D)[None, :]
    kind = k_ptr.dtype.element_ty
    q = tl.load(q_ptr + at, mask=inside, other=0.0).to(kind)
    # added here, not in the loop: of 4, 8 or 16 heads sm_80 would spill 48 bytes
    k_head, v_head = k_ptr + head // SHARED * D, v_ptr + head // SHARED * D
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, PADDED_D), dtype=tl.float32)
    for start in range(0, tl.minimum(length, length - count + m + BLOCK_M), TILE):
        token = start + tl.arange(0, TILE)
        seen = token < length
        block = tl.load(tables_ptr + s.to(tl.int64) * table_stride + token // BLOCK, mask=seen, other=0)
        row = (block.to(tl.int64) * BLOCK + token % BLOCK) * (KV_HEADS * D)
        there = seen[:, None] & (d < D)[None, :]
        k = tl.load(k_head + row[:, None] + d[None, :], mask=there, other=0.0)
        v = tl.load(v_head + row[:, None] + d[None, :], mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(token[None, :] <= position[:, None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(kind), v, acc * faded[:, None], input_precision="ieee")
        top = higher
    tl.store(out_ptr + at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, block_tables: torch.Tensor,
    query_starts: torch.Tensor, context_lens: torch.Tensor, scale: float, *, out: torch.Tensor | None = None,
    max_context: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """`reference.attention`. As many queries as sequences means one each: a decode step.

    max_context: the most tokens of a context in a decode step, the most queries of a sequence otherwise; beyond it, contexts
    are cut at a multiple of the split. If None, it is read from the GPU, which waits for queued work.
    """
    rows, heads, dim = q.shape
    block, kv_heads = k_cache.shape[1], k_cache.shape[2]
    many = context_lens.shape[0]
    out = torch.empty_like(q) if out is None else out
    check("q", q, (rows, heads, dim), q.device)
    check("out", out, (rows, heads, dim), q.device)
    check("k_cache", k_cache, (k_cache.shape[0], block, kv_heads, dim), q.device)
    check("v_cache", v_cache, tuple(k_cache.shape), q.device)
    check_device("block_tables", block_tables, q.device)
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, wanted a multiple of the cache's {kv_heads}")
    shared = heads // kv_heads
    padded = max(16, triton.next_power_of_2(dim))
    options = {"D": dim, "PADDED_D": padded, "BLOCK": block}
    if rows == many:
        max_context = int(context_lens.max()) if max_context is None else max_context
        how = tuned.attention(k_cache.element_size(), (heads, kv_heads, dim), rows, q.device)
        split, starts = SPLITS[k_cache.element_size()], pdl(q.device, how.trigger)
        splits = triton.cdiv(max_context, split)
        parts = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=q.device)
        stats = torch.empty(rows, heads, splits, 2, dtype=torch.float32, device=q.device)
        query_rows = max(16, triton.next_power_of_2(shared))
        _attention_decode_kernel[(many, kv_heads, splits)](
            q, k_cache, v_cache, block_tables, context_lens, parts, stats, block_tables.stride(0), scale * LOG2E, splits,
            KV_HEADS=kv_heads, SHARED=shared, SPLIT=split, ROWS=query_rows, TILE=min(how.tile, split),
            FETCH_FIRST=how.fetch_first, ASSEMBLY=not interpreting(), num_warps=how.num_warps, **options, **starts,
        )  # fmt: skip
        _attention_join_kernel[(many, heads)](
            parts, stats, context_lens, out, splits,
            HEADS=heads, D=dim, PADDED_D=padded, SPLIT=split, JOINED=JOINED, num_warps=4, **starts,
        )  # fmt: skip
        return out
    max_context = int((query_starts[1:] - query_starts[:-1]).max()) if max_context is None else max_context
    tile = prefill_tile(k_cache.element_size())
    _attention_prefill_kernel[(triton.cdiv(max_context, tile["BLOCK_M"]), heads, many)](
        q, k_cache, v_cache, block_tables, query_starts, context_lens, out, block_tables.stride(0), scale * LOG2E,
        HEADS=heads, SHARED=shared, **options, **tile, **pdl(q.device),
    )  # fmt: skip
    return out


def prefill_tile(itemsize: int) -> dict[str, int]:
    """Tile and warps of the prefill kernel for cache values of `itemsize` bytes."""
    if itemsize == 4:
        return {"BLOCK_M": 32, "TILE": 32, "num_warps": 4, "num_stages": 1}
    return {"BLOCK_M": 128, "TILE": 64, "num_warps": 8, "num_stages": 3}
