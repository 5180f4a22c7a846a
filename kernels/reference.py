"""The plain-torch definition of every op: numerics contract, test oracle, benchmark baseline and last fallback.

In shapes: T tokens, H hidden size, D head_dim, V vocabulary, S sequences. Activations are float32 on the CPU, whatever the
weights' dtype, and of the weights' 16-bit dtype on a GPU; products accumulate in float32. An op with `out` writes there and
returns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantized import (  # noqa: F401 (part of the contract)
    Int4Weight,
    Int8Weight,
    Weight,
    dequantize,
    quantize,
    row_parts,
    rows,
)
from .settings import BEST_BLOCK

# diff_add

CHUNK = 65536  # elements that are summed together
LANES = 1024  # float64 accumulators of a chunk
CANONICAL_NAN = {torch.float32: 0x7FC00000, torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}


@dataclass(frozen=True)
class DiffStats:
    """Sums and counts of a `diff_add` of n elements."""

    chunk_sums: Tensor  # (ceil(n / CHUNK),) float64, of the values before rounding
    overflowed: int  # finite values that became infinite in the output type
    nonfinite: int  # values that were NaN or infinite before rounding


def diff_add(base: Tensor, diff: Tensor, out_dtype: torch.dtype, *, subtract: bool = False) -> tuple[Tensor, DiffStats]:
    """float32(diff) + float32(base), or diff - base, rounded once to nearest even to `out_dtype`, with its stats.

    base, diff: tensors of one shape, which the result has too; float32, float16 or bfloat16 in any mix (else ValueError).

    Denormals are kept; every NaN becomes the canonical positive quiet NaN. All backends give equal bits and equal sums: in
    each chunk of the flattened values, lane l of LANES adds elements l, l + LANES, ... in order from 0.0, then the upper half
    of the lanes is added to the lower until one is left. A tensor's sum adds those of its chunks in order from 0.0.
    """
    for name, tensor in (("base", base), ("diff", diff)):
        if tensor.dtype not in CANONICAL_NAN:
            raise ValueError(f"{name} is {tensor.dtype}, wanted float32, float16 or bfloat16")
    if base.shape != diff.shape:
        raise ValueError(f"base has shape {tuple(base.shape)}, diff {tuple(diff.shape)}, wanted the same")
    left, right = base.float(), diff.float()
    value = right - left if subtract else right + left
    out = value.to(out_dtype)
    kind = torch.int32 if out.element_size() == 4 else torch.int16
    nan = torch.tensor(CANONICAL_NAN[out_dtype], dtype=kind, device=out.device)
    out = torch.where(torch.isnan(value), nan, out.view(kind)).view(out_dtype)
    finite = torch.isfinite(value)
    overflowed = int((finite & torch.isinf(out)).sum())
    return out, DiffStats(_chunk_sums(value.flatten()), overflowed, int((~finite).sum()))


def _chunk_sums(values: Tensor) -> Tensor:
    chunks = -(-values.numel() // CHUNK)
    # adding 0.0 changes no lane: none is ever -0.0
    padded = F.pad(values.double(), (0, chunks * CHUNK - values.numel()))
    rows = padded.view(chunks, CHUNK // LANES, LANES)
    lanes = torch.zeros(chunks, LANES, dtype=torch.float64, device=values.device)
    for row in range(CHUNK // LANES):
        lanes = lanes + rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


# The decoder

WIDENED_BYTES = 32 << 20  # temporary float32 memory of `linear` for 16-bit weights on the CPU


def embed(ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rows of `weight` (V, H) for `ids` (T,) int64. Returns (T, H) in the activation dtype."""
    rows = weight.index_select(0, ids)
    return _into(out, rows.float() if weight.device.type == "cpu" else rows)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in float32, rounded to x's dtype, times `weight` (H,). x: (T, H)."""
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return _into(out, normed * weight.to(x.dtype))


def linear(x: Tensor, weight: Weight, *, out: Tensor | None = None, batch_invariant: bool = False) -> Tensor:
    """x (T, K) times `weight` (N, K) transposed: (T, N) in x's type. Quantised weights are dequantised to x's type first.

    `batch_invariant` computes every row by itself, so that its bits do not depend on the number of rows: torch's library
    changes its order of summation with T. Kernels with one order for all T ignore it.
    """
    if out is None:
        out = x.new_empty(x.shape[0], weight.shape[0])
    as_is = isinstance(weight, Tensor) and weight.dtype == x.dtype
    step = weight.shape[0] if as_is else max(1, WIDENED_BYTES // (4 * weight.shape[1]))
    for begin in range(0, weight.shape[0], step):
        block = dequantize(rows(weight, begin, begin + step), x.dtype)
        part = out[:, begin : begin + step]
        if batch_invariant:
            for t in range(x.shape[0]):  # fresh memory: the library's order of summation follows alignment
                part[t] = torch.mv(block, x[t].clone())
        else:
            part.copy_(F.linear(x, block))
    return out


def add(x: Tensor, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x + y, the residual."""
    return torch.add(x, y, out=out) if out is not None else x + y


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> None:
    """Rotate q in place, and write the rotated k, and v, to the cache.

    q: (T, Hq, D). k, v: (T, Hkv, D). The first half of a head is rotated against the second (transformers' layout).
    cos, sin: (P, D/2) float32; row positions[t] is used for token t. positions: (T,) int64.
    k_cache, v_cache: (blocks, block, Hkv, D). slots: (T,) int64, the row of each token in the cache: block number * block size
    + offset in the block.
    """
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)  # (T, 1, D/2)
    q.copy_(_rotate(q, c, s))
    k_cache.flatten(0, 1).index_copy_(0, slots, _rotate(k, c, s).to(k_cache.dtype))
    v_cache.flatten(0, 1).index_copy_(0, slots, v.to(v_cache.dtype))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
    max_context: int | None = None,
) -> Tensor:
    """Causal attention of each sequence's new tokens over its cached ones, softmax in float32: (T, Hq, D).

    q: (T, Hq, D). query_starts: (S + 1,) int; sequence s has rows query_starts[s] to query_starts[s + 1] of q.
    block_tables: (S, max_blocks) int, context_lens: (S,) int; the context of sequence s is the first context_lens[s] rows of
    its blocks block_tables[s], and its last query is the last of them. Query head h reads key head h // (Hq / Hkv). Each
    sequence is computed by itself.
    max_context: for kernels whose launch depends on it, the most tokens of a context if each sequence has one query, else
    the most queries of a sequence.
    """
    if out is None:
        out = torch.empty_like(q)
    block, kv_heads, dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    starts, lens = query_starts.tolist(), context_lens.tolist()
    for s, length in enumerate(lens):
        begin, end = starts[s], starts[s + 1]
        blocks = block_tables[s, : -(-length // block)].long()
        # fresh memory of each head, as in `linear`: bits do not depend on how many there are
        keys = k_cache[blocks].flatten(0, 1)[:length].float().transpose(0, 1).contiguous()  # (Hkv, L, D)
        values = v_cache[blocks].flatten(0, 1)[:length].float().transpose(0, 1).contiguous()
        # rows that share a key head are adjacent
        queries = q[begin:end].float().transpose(0, 1).clone(memory_format=torch.contiguous_format)
        queries = queries.view(kv_heads, group * (end - begin), dim)
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(kv_heads, group, end - begin, length) * scale
        if end - begin > 1:
            last = torch.arange(length - (end - begin), length, device=q.device)  # the position of each query
            future = torch.arange(length, device=q.device)[None, :] > last[:, None]
            scores.masked_fill_(future, float("-inf"))
        mixed = torch.bmm(scores.softmax(-1).view(kv_heads, -1, length), values)
        out[begin:end] = mixed.view(kv_heads * group, end - begin, dim).transpose(0, 1).to(out.dtype)
    return out


def silu_mul(gate: Tensor, up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, all (T, I); silu in float32, rounded to the activation dtype before the product.

    Computed row by row on the CPU, because torch's exp rounds differently for the elements left over after whole vectors, and
    which elements those are would depend on T.
    """
    if out is None:
        out = torch.empty_like(gate)
    rows = zip(gate, up, out, strict=True) if gate.device.type == "cpu" else [(gate, up, out)]
    for g, u, o in rows:
        o.copy_(F.silu(g.float()).to(g.dtype) * u)
    return out


def _into(out: Tensor | None, value: Tensor) -> Tensor:
    return value if out is None else out.copy_(value)


# The fused ops of a decode step. A layer is qkv_rope_store, attention, linear_add, gate_up, linear_add. Where several devices
# share a model, segment_sums and add_sums, with the exchange of sums between them, stand for each linear_add.


def qkv_rope_store(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: Sequence[Weight],
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    q: Tensor,
    batch_invariant: bool = False,
    int8_activations: bool = False,
    units: int | None = None,
) -> None:
    """rms_norm, the products with q, k and v, rope_and_store. x: (T, H); q: (T, Hq, D) is written.

    `weights`: the three matrices, or one with their rows joined in this order. `int8_activations` allows a backend to round
    the activations that meet quantised weights to 8 bits, with one scale for 64 (int4) or 128 columns, if that is faster; here
    they are not rounded.

    `units`: q, k and v are computed in so many equal parts of their rows, a divisor of the number of key heads. A library's
    order of summation follows a matrix's shape: with u units of the whole, and u / R of each of the R shares that devices hold,
    all products have the same shapes, and a result's bits do not depend on R. None: one product for each of `weights`. Kernels
    with one order for every shape ignore it.
    """
    kv_heads, dim = k_cache.shape[2:]
    k_begin = q.shape[1] * dim
    v_begin = k_begin + kv_heads * dim
    counts = k_begin, kv_heads * dim, kv_heads * dim
    parts = _products(rms_norm(x, norm, eps), weights, counts, units, batch_invariant)
    q.copy_(parts[:, :k_begin].view(q.shape))
    k, v = parts[:, k_begin:v_begin].unflatten(1, (kv_heads, dim)), parts[:, v_begin:].unflatten(1, (kv_heads, dim))
    rope_and_store(q, k, v, cos, sin, positions, k_cache, v_cache, slots)


def linear_add(
    x: Tensor, weight: Weight, *, out: Tensor, batch_invariant: bool = False, int8_activations: bool = False
) -> Tensor:
    """out (T, N) += linear(x (T, K), weight): a product and the residual. `int8_activations`: as in qkv_rope_store."""
    return add(out, linear(x, weight, batch_invariant=batch_invariant), out=out)


def segment_sums(
    x: Tensor,
    weight: Weight,
    *,
    segments: int,
    out: Tensor,
    batch_invariant: bool = False,
    int8_activations: bool = False,
) -> Tensor:
    """The products of `segments` parts of x's columns, each with its own matrix, added as `tree` adds: (T, N) float32.

    x: (T, segments * K). weight: (segments * N, K), of which the rows from s * N on are the matrix of part s. segments: a power
    of two. Each product is computed as `linear` does, in memory of its own; a kernel may leave out its rounding to x's type.
    `int8_activations`: as in qkv_rope_store.
    """
    columns = weight.shape[1]
    sums = torch.empty(segments, *out.shape, dtype=torch.float32, device=x.device)
    for s, matrix in enumerate(row_parts([weight], [weight.shape[0]], segments)):
        part = x[:, s * columns : (s + 1) * columns].clone(memory_format=torch.contiguous_format)
        sums[s] = linear(part, _aligned(matrix), batch_invariant=batch_invariant)
    return out.copy_(tree(sums))


def add_sums(sums: Tensor, *, out: Tensor) -> Tensor:
    """out (T, N) += tree(sums), rounded once to out's type. sums: (R, T, N) float32, R a power of two."""
    return out.copy_(out.float() + tree(sums))


def tree(sums: Tensor) -> Tensor:
    """The sum over the first dimension, a power of two long: neighbours are added, then neighbouring sums, and so on.

    If 2, 4, ... neighbours at a time were added so before, the result is the same.
    """
    while sums.shape[0] > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]


def gate_up(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: Sequence[Weight],
    *,
    out: Tensor,
    batch_invariant: bool = False,
    int8_activations: bool = False,
    units: int | None = None,
) -> Tensor:
    """rms_norm, the products with gate and up, silu_mul: (T, I). `weights`: the two, or one with their rows joined.

    `int8_activations`, `units`: as in qkv_rope_store.
    """
    inner = out.shape[1]
    parts = _products(rms_norm(x, norm, eps), weights, (inner, inner), units, batch_invariant)
    width = inner // (units or 1)
    for begin in range(0, inner, width):  # what is left over after whole vectors is rounded otherwise
        gate, up = (parts[:, side + begin : side + begin + width] for side in (0, inner))
        silu_mul(gate, up, out=out[:, begin : begin + width])
    return out


NO_TOKEN = -1  # the result of `sample` for a row with a logit that is not finite


def head(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Weight,
    *,
    out: Tensor,
    batch_invariant: bool = False,
    best: Tensor | None = None,
    units: int | None = None,
) -> Tensor:
    """Logits (T, V) float32 of the hidden states x (T, H): rms_norm and the product with the output matrix.

    best: (T, ceil(V / BEST_BLOCK)) int32, receives the id of the greatest logit of each block (the first of equals), or
    NO_TOKEN if one of the block's logits is not finite. `units`: as in qkv_rope_store.
    """
    out.copy_(_products(rms_norm(x, norm, eps), [weight], (out.shape[1],), units, batch_invariant))
    if best is not None:
        padded = F.pad(out, (0, -out.shape[1] % BEST_BLOCK), value=float("-inf")).unflatten(1, (-1, BEST_BLOCK))
        ids = padded.argmax(2) + torch.arange(padded.shape[1], device=x.device) * BEST_BLOCK
        finite = F.pad(torch.isfinite(out), (0, -out.shape[1] % BEST_BLOCK), value=True).unflatten(1, (-1, BEST_BLOCK))
        best.copy_(torch.where(finite.all(2), ids, NO_TOKEN))
    return out


def _products(
    x: Tensor, weights: Sequence[Weight], counts: Sequence[int], units: int | None, batch_invariant: bool
) -> Tensor:
    """x times the matrices of `counts` rows, side by side. `units`: as in qkv_rope_store."""
    if units is not None:
        weights = [_aligned(part) for part in row_parts(weights, counts, units)]
    return torch.cat([linear(x, weight, batch_invariant=batch_invariant) for weight in weights], dim=1)


def _aligned(weight: Weight) -> Weight:
    """The matrix, copied if it begins off a 64-byte line: the library's order of summation follows alignment, and where a part
    of a matrix begins, in memory or in a mapped file, depends on what is stored before it."""
    return weight.clone() if isinstance(weight, Tensor) and weight.data_ptr() % 64 else weight


# Sampling

_MASK = 0xFFFFFFFF
SHARES = 2.0**34
MOST_LOGITS = 1 << 19


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) that scatters every input bit: xor-shifts and odd multipliers.

    The constants are lowbias32's (C. Wellons, hash-prospector). The arithmetic is 32-bit, so that a GPU can do the same.
    """
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def uniform(seeds: Tensor, sample_index: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """(S, N) float32 in (0, 1): one number for each (seed, sample index, position, token id), the same on all backends.

    seeds, sample_index, positions: (S,) int64; both 32-bit halves of a seed matter. tokens: (N,) int64 ids.
    A number is (23 random bits + 0.5) / 2^23, exact in float32 and never 0 or 1.
    """
    row = mix((seeds & _MASK) ^ 0x9E3779B9)
    for counter in (seeds >> 32 & _MASK, sample_index & _MASK, positions.long() & _MASK):
        row = mix(row ^ counter)
    bits = mix(row[:, None] ^ mix(tokens + 0x85EBCA6B & _MASK)[None, :])
    return ((bits >> 9).float() + 0.5) * 2.0**-23


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    sample_index: Tensor,
    positions: Tensor,
    *,
    out: Tensor | None = None,
    best: Tensor | None = None,
) -> Tensor:
    """Choose a token id for each row of `logits` (S, V) float32. Returns (S,) int64.

    temperature, top_p, min_p: (S,) float32. top_k, seeds, sample_index, positions: (S,) integers.
    best: as `head` leaves it; may save a pass over the logits.

    temperature 0 takes the greatest logit, the first of equals. Otherwise, in this order, as in transformers: logits /
    temperature; keep the top_k greatest (0: all); keep the likeliest whose probabilities reach top_p; keep those at least min_p
    times as likely as the likeliest. Ties with the last one kept are kept. The choice is the greatest of logit + Gumbel noise
    -log(-log(u)), u from `uniform`: a draw from the softmax that depends only on the row's own arguments.
    A row gives NO_TOKEN if one of its logits, or its greatest divided by temperature, is not finite.

    logits / temperature is float32, the rest float64. Probabilities are summed as integer multiples of 1 / SHARES of the
    likeliest token's, which is exact in any order for up to MOST_LOGITS logits: two implementations agree unless the last
    bits of their logarithms decide. One in float32 (kernels/sample.py) may differ when two draws, or top_p and a sum, are
    closer than float32 can resolve, about once in a million draws.
    """
    greedy = temperature <= 0
    chosen = logits.argmax(-1)
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    if not bool(greedy.all()):
        kept = _filter(scaled, top_k, top_p, min_p)
        kept[:, :1] |= ~kept.any(1, keepdim=True)  # for a row that is not finite, which gets NO_TOKEN below
        ids = kept.any(0).nonzero()[:, 0]  # usually a small part of the vocabulary
        noise = -torch.log(-torch.log(uniform(seeds, sample_index, positions, ids).double()))
        drawn = ids[torch.where(kept[:, ids], scaled[:, ids] + noise, float("-inf")).argmax(-1)]
        chosen = torch.where(greedy, chosen, drawn)
    finite = torch.isfinite(logits).all(-1) & torch.isfinite(scaled.amax(-1))
    return _into(out, torch.where(finite, chosen, NO_TOKEN))


def _filter(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """(S, V) bool: the tokens that may be drawn."""
    vocabulary = scaled.shape[1]
    most = int(top_k.max()) if bool((top_k > 0).all()) else vocabulary  # no more can be kept, but for ties
    ordered = scaled.topk(most).values if most < vocabulary else scaled.sort(-1, descending=True).values
    last = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary) - 1
    kept = scaled >= ordered.gather(1, last[:, None])
    ordered = ordered.masked_fill(ordered < ordered.gather(1, last[:, None]), float("-inf"))
    top = ordered[:, :1].double()
    weights = ((ordered.double() - top).exp() * SHARES).round()
    before = weights.cumsum(-1) - weights  # the sum of all likelier ones
    count = (before < top_p.double()[:, None] * weights.sum(-1, keepdim=True)).sum(-1).clamp(min=1)
    count = torch.where(top_p < 1, count, ordered.shape[1])
    kept &= scaled >= ordered.gather(1, count[:, None] - 1)
    floor = torch.where(min_p > 0, min_p.double().log(), float("-inf"))
    return kept & (scaled >= top + floor[:, None])


def advance(
    tokens: Tensor,
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    lens: Tensor,
    left: Tensor,
    stops: Tensor,
    block_tables: Tensor,
    block: int,
) -> None:
    """Make the chosen `tokens` (S,) int64 the input of the next step in rows that continue; ended rows keep their input.

    left: (S,) int32, the tokens that a row may still choose, including this one. It decreases by one, and drops to 0 at a
    token in `stops` (S, n) int64 or a negative one.
    ids, positions, slots: (S,) int64; lens: (S,) int32. They move to the next position in rows whose `left` is still above 0.
    block_tables: (S, m) int32; must hold the block of the next position. block: tokens per block.
    """
    ended = (stops == tokens[:, None]).any(1) | (tokens < 0)
    left.copy_(torch.where(ended, 0, (left - 1).clamp(min=0)))
    on = left > 0
    places = positions + on.long()
    blocks = block_tables.gather(1, (places // block)[:, None])[:, 0].long()
    ids.copy_(torch.where(on, tokens, ids))
    positions.copy_(places)
    slots.copy_(torch.where(on, blocks * block + places % block, slots))
    lens.copy_(torch.where(on, (places + 1).to(lens.dtype), lens))
