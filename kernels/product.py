"""The products of a decode step: y = x W^T for 1 to 64 rows of x, fused with the ops before and after.

    qkv_rope_store   RMSNorm, product, rotary embedding of q and k, k and v into the paged cache
    gate_up          RMSNorm, product, silu(gate) * up
    linear_add       product, residual
    segment_sums     products of parts of x's columns with a matrix each, added in a fixed tree, in float32
    head             RMSNorm, product in float32, and the greatest of each BLOCK_N logits

All are one kernel. A program handles BLOCK_N rows of W and all rows of x (at most 64; for int4, 32), and walks K in tiles; W is
the left operand of the tensor cores. A tile of W is read from memory once, whatever T is: if x has more rows, the programs that
share the tile are adjacent in the grid, so they run at the same time and all but the first find it in the L2 cache. If the
epilogue needs two outputs together (the halves of a head, gate and up), the first half of a tile's rows holds the first of each
pair, and the second half the second.

The result depends neither on T nor on how a product is launched (kernels/settings.py): K is walked in the same order, with the
same tensor instruction, m16n8k16, on every GPU since Ampere (Hopper's wgmma would need four warps and 64 rows of W; the gate
checks that it is not used). For many rows the norm is a separate kernel, with the same bits. W is float16, bfloat16, float32,
int8 or int4 (codes, and values times scales of blocks, in x's type; the row's scale is applied to the sum).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tuned
from .dequantize import codes4, codes8, dequantize, scales4, stored_parts
from .launch import (
    check,
    check_device,
    dependent_launch,
    interpreting,
    pdl,
    prefetch,
    start_next,
    wait_for_inputs,
)
from .norm import LANES, inverse_rms, rms_norm
from .quantized import BLOCK, Weight, row_parts
from .rope import rope_and_store
from .settings import BEST_BLOCK, MAX_ROWS, NORM_TRIGGERS
from .silu import silu_mul
from .sums import tree

EPILOGUES = {"linear": 0, "segment_sums": 0, "linear_add": 1, "gate_up": 2, "qkv_rope_store": 3, "head": 4}
WIDENED_BYTES = 512 << 20  # memory for dequantised rows of a matrix at a time, for many rows of x


@triton.jit(do_not_specialize=["T"])
def _product_kernel(
    x_ptr, norm_ptr, w_ptr, block_scale_ptr, scale_ptr, out_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr,
    index_ptr, eps, T, N: tl.constexpr, K: tl.constexpr, SEGMENTS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, EPILOGUE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LANES: tl.constexpr, AHEAD: tl.constexpr,
    ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of W (or pairs of rows) from program_id(1) * BLOCK_N, rows of x from program_id(0) * BLOCK_T.

    With SEGMENTS, of segment program_id(2): columns of x from K times that, rows of W from N times that, an output of its own.
    In this order, programs that read the same tiles of W run at the same time. AHEAD: tiles of W prefetched before anything
    else, with ASSEMBLY, which the interpreter lacks.
    """
    HALF: tl.constexpr = BLOCK_N // 2
    PAIRED: tl.constexpr = EPILOGUE == 2 or EPILOGUE == 3
    first_t, part = tl.program_id(0) * BLOCK_T, tl.program_id(1)
    t = first_t + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_N)
    if PAIRED:  # n: the row of W for each row of the tile, the first or the second of pair i
        i = part * HALF + r % HALF
        if EPILOGUE == 2:
            n = (r // HALF) * (N // 2) + i
        else:
            n = i // (D // 2) * D + (r // HALF) * (D // 2) + i % (D // 2)
        inside = i < N // 2
    else:
        n = part * BLOCK_N + r
        inside = n < N
    WIDTH: tl.constexpr = BLOCK_K // 2 if BITS == 4 else BLOCK_K  # elements of a tile's row as stored
    BLOCKS: tl.constexpr = (K + BLOCK - 1) // BLOCK
    STRIDE: tl.constexpr = BLOCKS * (BLOCK // 2) if BITS == 4 else K
    WHOLE: tl.constexpr = (N // 2) % HALF == 0 if PAIRED else N % BLOCK_N == 0
    EVEN: tl.constexpr = WHOLE and STRIDE % WIDTH == 0
    if SEGMENTS > 1:
        segment = tl.program_id(2).to(tl.int64)
        x_ptr += segment * K
        w_ptr += segment * (N * STRIDE)
        out_ptr += segment * N * T
        if BITS == 4:
            block_scale_ptr += segment * (N * BLOCKS)
        if BITS <= 8:
            scale_ptr += segment * N
    row = n.to(tl.int64) * STRIDE
    column = tl.arange(0, WIDTH)
    if ASSEMBLY and AHEAD > 0:  # uses the memory while the previous kernel ends, and while x is normalised
        LINE: tl.constexpr = 1024 // max(BITS, 8)  # stored elements in 128 bytes
        line = tl.arange(0, WIDTH // LINE if WIDTH > LINE else 1) * LINE
        at = w_ptr + tl.where(inside, row, 0)[:, None] + line[None, :]
        for tile in tl.static_range(0, min(AHEAD, STRIDE // WIDTH)):
            prefetch(at + tile * WIDTH)
    wait_for_inputs(PDL)
    kind = x_ptr.dtype.element_ty
    if NORM:
        rms = tl.zeros((BLOCK_T,), dtype=tl.float32)
        for i_t in range(0, tl.minimum(T - first_t, BLOCK_T)):
            scale = inverse_rms(x_ptr + (first_t + i_t).to(tl.int64) * K, eps, K, LANES)
            rms = tl.where(t == first_t + i_t, scale, rms)
    acc = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    x_rows = x_ptr + t.to(tl.int64)[:, None] * (K * SEGMENTS)
    for tile in range(0, tl.cdiv(STRIDE, WIDTH)):
        stored = tile * WIDTH + column
        if EVEN:
            w = tl.load(w_ptr + row[:, None] + stored[None, :])
        else:
            w = tl.load(
                w_ptr + row[:, None] + stored[None, :], mask=inside[:, None] & (stored < STRIDE)[None, :], other=0
            )
        if BITS == 4:
            b = tile * (BLOCK_K // BLOCK) + tl.arange(0, BLOCK_K // BLOCK)
            scales = block_scale_ptr + n.to(tl.int64)[:, None] * BLOCKS + b[None, :]
            if EVEN:
                c = tl.load(scales)
            else:
                c = tl.load(scales, mask=inside[:, None] & (b < BLOCKS)[None, :], other=0)
            c, bias = scales4(c, BLOCK_N, BLOCK_K // BLOCK, BLOCK, ASSEMBLY)
            low, high = codes4(w, bias, ASSEMBLY)
            if kind == tl.float16:  # whole numbers of 8 bits, their product rounded once, like one in float32
                low, high = low * c, high * c
            else:
                low, high = low.to(tl.float32) * c.to(tl.float32), high.to(tl.float32) * c.to(tl.float32)
            k = tile * BLOCK_K + column // (BLOCK // 2) * BLOCK + column % (BLOCK // 2)
            x = _x_tile(x_rows, norm_ptr, k, t, T, rms if NORM else None, K, BLOCK_K, NORM, kind)
            acc = tl.dot(low.to(kind), tl.trans(x), acc, input_precision="ieee")
            x = _x_tile(x_rows, norm_ptr, k + BLOCK // 2, t, T, rms if NORM else None, K, BLOCK_K, NORM, kind)
            acc = tl.dot(high.to(kind), tl.trans(x), acc, input_precision="ieee")
        else:
            if BITS == 8:
                w = codes8(w, ASSEMBLY)
            x = _x_tile(x_rows, norm_ptr, stored, t, T, rms if NORM else None, K, BLOCK_K, NORM, kind)
            acc = tl.dot(w.to(kind), tl.trans(x), acc, input_precision="ieee")
    start_next(PDL)
    if BITS <= 8:
        acc *= tl.load(scale_ptr + n, mask=inside, other=0.0)[:, None]
    if PAIRED:
        first, second = tl.split(tl.permute(tl.reshape(acc, (2, HALF, BLOCK_T)), (1, 2, 0)))
        i = part * HALF + tl.arange(0, HALF)
        mask = (i < N // 2)[:, None] & (t < T)[None, :]
        if EPILOGUE == 2:
            gate = first.to(kind).to(tl.float32)
            gate = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
            value = gate * second.to(kind).to(tl.float32)
            tl.store(out_ptr + t.to(tl.int64)[None, :] * (N // 2) + i[:, None], value.to(kind), mask=mask)
        else:
            head = i // (D // 2)  # q's heads, then k's, then v's
            j = i % (D // 2)
            position = tl.load(positions_ptr + t, mask=t < T, other=0)
            slot = tl.load(slots_ptr + t, mask=t < T, other=0)
            angle = position[None, :] * (D // 2) + j[:, None]
            c, s = tl.load(cos_ptr + angle, mask=mask, other=0.0), tl.load(sin_ptr + angle, mask=mask, other=0.0)
            first, second = first.to(kind).to(tl.float32), second.to(kind).to(tl.float32)
            turned_first, turned_second = first * c - second * s, second * c + first * s
            stored_kind = k_ptr.dtype.element_ty
            is_q = mask & (head < HEADS)[:, None]
            to = out_ptr + (t.to(tl.int64)[None, :] * HEADS + head[:, None]) * D + j[:, None]
            tl.store(to, turned_first.to(kind), mask=is_q)
            tl.store(to + D // 2, turned_second.to(kind), mask=is_q)
            is_k = mask & (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
            at = (slot[None, :] * KV_HEADS + (head - HEADS)[:, None]) * D + j[:, None]
            tl.store(k_ptr + at, turned_first.to(stored_kind), mask=is_k)
            tl.store(k_ptr + at + D // 2, turned_second.to(stored_kind), mask=is_k)
            is_v = mask & (head >= HEADS + KV_HEADS)[:, None]
            at = at - KV_HEADS * D
            tl.store(v_ptr + at, first.to(stored_kind), mask=is_v)
            tl.store(v_ptr + at + D // 2, second.to(stored_kind), mask=is_v)
    else:
        mask = inside[:, None] & (t < T)[None, :]
        to = out_ptr + t.to(tl.int64)[None, :] * N + n[:, None]
        if EPILOGUE == 1:
            acc = acc.to(kind).to(tl.float32) + tl.load(to, mask=mask, other=0.0).to(tl.float32)
        if EPILOGUE == 4:
            acc = acc.to(kind).to(tl.float32)
            broken = tl.max(tl.where(mask & (acc - acc != 0), 1, 0), axis=0)
            best = tl.max(tl.where(mask, acc, float("-inf")), axis=0)
            index = tl.min(tl.where(mask & (acc == best[None, :]), n[:, None], N), axis=0)
            PARTS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
            place = t.to(tl.int64) * PARTS + part
            tl.store(index_ptr + place, tl.where(broken > 0, -1, index), mask=t < T)
        tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _x_tile(
    x_rows, norm_ptr, k, t, T, rms, K: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr
):
    """Load columns k of x, (BLOCK_T, len(k)); with NORM, normalise them with the rounding steps of `reference.rms_norm`."""
    if K % BLOCK_K == 0:
        x = tl.load(x_rows + k[None, :], mask=(t < T)[:, None], other=0.0)
    else:
        x = tl.load(x_rows + k[None, :], mask=(t < T)[:, None] & (k < K)[None, :], other=0.0)
    if NORM:
        weight = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(KIND).to(tl.float32)
        x = ((x.to(tl.float32) * rms[:, None]).to(KIND).to(tl.float32) * weight[None, :]).to(KIND)
    return x


def _launch(
    op: str, x: torch.Tensor, norm: torch.Tensor | None, eps: float, weight: Weight, out: torch.Tensor,
    rope: tuple[torch.Tensor | None, ...] = (None,) * 6, heads: tuple[int, int, int] = (1, 1, 2),
    index: torch.Tensor | None = None, segments: int = 1,
) -> None:  # fmt: skip
    rows, columns = x.shape[0], x.shape[1] // segments
    count = weight.shape[0] // segments
    if weight.shape[1] * segments != x.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (N, {columns}) for x of {tuple(x.shape)}")
    values, block_scales, scales, bits = _stored(weight, x)
    how = tuned.product(op, bits, (weight.shape[0], columns), rows, x.device)
    if norm is not None and not how.fuse_norm:
        x, norm = rms_norm(x, norm, eps, trigger=NORM_TRIGGERS[how.trigger]), None
    block_t = how.block_t(rows)
    grid = triton.cdiv(rows, block_t), triton.cdiv(count, how.block_n), segments
    _product_kernel[grid](
        x, norm, values, block_scales, scales, out, *rope, index, eps, rows, N=count, K=columns, SEGMENTS=segments,
        BITS=bits, BLOCK=BLOCK, NORM=norm is not None, EPILOGUE=EPILOGUES[op], HEADS=heads[0], KV_HEADS=heads[1],
        D=heads[2], LANES=LANES, BLOCK_T=block_t, BLOCK_N=how.block_n, BLOCK_K=how.block_k, num_warps=how.num_warps,
        num_stages=how.num_stages,
        AHEAD=how.prefetched if norm is not None or dependent_launch(x.device) else 0, ASSEMBLY=not interpreting(),
        **pdl(x.device, how.trigger),
    )  # fmt: skip


def _stored(weight: Weight, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]:
    """(values, block scales, row scales, bits) of a weight for the kernel. ValueError if it or x is strided or on
    another device."""
    parts: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]
    if isinstance(weight, torch.Tensor):
        parts = weight, None, None, 8 * weight.element_size()
    else:
        parts = stored_parts(weight)
    for name, tensor in (
        ("weight", parts[0]),
        ("x", x),
        ("weight's block scales", parts[1]),
        ("weight's scales", parts[2]),
    ):
        if tensor is not None:
            check_device(name, tensor, x.device)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} is strided, wanted contiguous rows")
    return parts


def small(rows: int, batch_invariant: bool) -> bool:
    """Whether the kernel above serves: always where a row must not depend on the others, else up to its 64 rows.

    Longer prompts are bound by arithmetic, for which cuBLAS is better.
    """
    return batch_invariant or rows <= MAX_ROWS


def linear(
    x: torch.Tensor, weight: Weight, *, out: torch.Tensor | None = None, batch_invariant: bool = False
) -> torch.Tensor:
    """`reference.linear`."""
    out = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    if small(x.shape[0], batch_invariant):
        check("out", out, (x.shape[0], weight.shape[0]), x.device)
        _launch("linear", x, None, 0.0, weight, out)
        return out
    if isinstance(weight, torch.Tensor):
        return torch.mm(x, weight.to(x.dtype).t(), out=out)
    step = max(1, WIDENED_BYTES // (x.element_size() * weight.shape[1]))
    for begin in range(0, weight.shape[0], step):
        block = dequantize(weight.rows(begin, begin + step), x.dtype)
        if block.shape[0] == weight.shape[0]:
            return torch.mm(x, block.t(), out=out)
        out[:, begin : begin + step] = torch.mm(x, block.t())
    return out


def _linear_parts(x: torch.Tensor, weights: Sequence[Weight], counts: Sequence[int], units: int | None) -> torch.Tensor:
    """x times the matrices of `counts` rows, side by side, by the library: in parts if `units`, as `reference.qkv_rope_store`
    says, else in one product of the one matrix that holds them all."""
    if units is None:
        return linear(x, _joined(weights))
    out = x.new_empty(x.shape[0], sum(counts))
    begin = 0
    for part in row_parts(weights, counts, units):
        out[:, begin : begin + part.shape[0]] = linear(x, part)
        begin += part.shape[0]
    return out


def qkv_rope_store(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weights: Sequence[Weight], cos: torch.Tensor, sin: torch.Tensor,
    positions: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor,
    *, q: torch.Tensor, batch_invariant: bool = False, int8_activations: bool = False, units: int | None = None,
) -> None:  # fmt: skip
    """`reference.qkv_rope_store` for one joined matrix."""
    weight = _joined(weights)
    kv_heads, dim = k_cache.shape[2:]
    heads = (q.shape[1], kv_heads, dim)
    rows = x.shape[0]
    check("q", q, (rows, heads[0], dim), x.device)
    check("v_cache", v_cache, tuple(k_cache.shape), x.device)
    check("k_cache", k_cache, tuple(v_cache.shape), x.device)
    if weight.shape[0] != (heads[0] + 2 * kv_heads) * dim:
        raise ValueError(
            f"weights have {weight.shape[0]} rows, wanted {(heads[0] + 2 * kv_heads) * dim} for q, k and v"
        )
    if small(rows, batch_invariant):
        _launch("qkv_rope_store", x, norm, eps, weight, q, (cos, sin, positions, slots, k_cache, v_cache), heads)
        return
    counts = heads[0] * dim, kv_heads * dim, kv_heads * dim
    parts = _linear_parts(rms_norm(x, norm, eps), weights, counts, units)
    rope_and_store(parts, cos, sin, positions, k_cache, v_cache, slots, q=q)


def linear_add(
    x: torch.Tensor, weight: Weight, *, out: torch.Tensor, batch_invariant: bool = False, int8_activations: bool = False
) -> torch.Tensor:
    """`reference.linear_add`."""
    check("out", out, (x.shape[0], weight.shape[0]), x.device)
    if small(x.shape[0], batch_invariant):
        _launch("linear_add", x, None, 0.0, weight, out)
        return out
    return out.add_(linear(x, weight))


def segment_sums(
    x: torch.Tensor, weight: Weight,
    *, segments: int, out: torch.Tensor, batch_invariant: bool = False, int8_activations: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`reference.segment_sums`, up to 8 segments; of up to 64 rows, or batch_invariant, without the products' rounding."""
    rows = x.shape[0]
    check("out", out, (rows, weight.shape[0] // segments), x.device)
    if not small(rows, batch_invariant):
        return out.copy_(_library_sums(x, row_parts([weight], [weight.shape[0]], segments)))
    if segments == 1:
        _launch("segment_sums", x, None, 0.0, weight, out)
        return out
    sums = torch.empty(segments, *out.shape, dtype=torch.float32, device=x.device)
    _launch("segment_sums", x, None, 0.0, weight, sums, segments=segments)
    return tree(sums, out=out)


def _library_sums(x: torch.Tensor, weights: Sequence[Weight]) -> torch.Tensor:
    """The tree of the segments' products, each of the same shape whatever their number; few of them are held at a time."""
    if len(weights) == 1:
        return linear(x.clone(memory_format=torch.contiguous_format), weights[0]).float()
    half, middle = len(weights) // 2, x.shape[1] // 2
    first = _library_sums(x[:, :middle], weights[:half])
    return first.add_(_library_sums(x[:, middle:], weights[half:]))


def gate_up(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weights: Sequence[Weight],
    *, out: torch.Tensor, batch_invariant: bool = False, int8_activations: bool = False, units: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """`reference.gate_up` for one joined matrix."""
    weight = _joined(weights)
    check("out", out, (x.shape[0], weight.shape[0] // 2), x.device)
    if small(x.shape[0], batch_invariant):
        _launch("gate_up", x, norm, eps, weight, out)
        return out
    return silu_mul(_linear_parts(rms_norm(x, norm, eps), weights, (out.shape[1], out.shape[1]), units), out=out)


def head(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: Weight,
    *, out: torch.Tensor, batch_invariant: bool = False, best: torch.Tensor | None = None, units: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """`reference.head`."""
    rows, blocks = x.shape[0], triton.cdiv(weight.shape[0], BEST_BLOCK)
    check("out", out, (rows, weight.shape[0]), x.device)
    if not small(rows, batch_invariant) and best is None:
        return out.copy_(_linear_parts(rms_norm(x, norm, eps), [weight], (out.shape[1],), units))
    best = torch.empty(rows, blocks, dtype=torch.int32, device=x.device) if best is None else best
    check("best", best, (rows, blocks), x.device)
    _launch("head", x, norm, eps, weight, out, index=best)
    return out


def _joined(weights: Sequence[Weight]) -> Weight:
    """The one matrix that a model on a GPU is loaded with. On the CPU, in Triton's interpreter, a model is loaded as for C++:
    matrices that lie apart are joined in each call, which takes no time beside interpreting.
    """
    if len(weights) == 1:
        return weights[0]
    tensors = [weight for weight in weights if isinstance(weight, torch.Tensor) and weight.device.type == "cpu"]
    if len(tensors) != len(weights):
        raise ValueError(f"weights are {len(weights)} matrices, wanted one of their joined rows")
    return torch.cat(tensors)
