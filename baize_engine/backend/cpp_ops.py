"""The decoder's ops in C++ for CPU tensors: checks each op's operands and adds it to a `_C.Plan`, which runs in one call.

Activations are float32, the cache any float type. The order of summation never depends on the number of rows, so
`batch_invariant` changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine import _C
from baize_engine.backend import forks
from baize_engine.backend.operands import FLOATS, address, matrix
from baize_engine.backend.plan_ops import (
    AddSums,
    Advance,
    Attention,
    Embed,
    GateUp,
    Head,
    LinearAdd,
    PlanOp,
    QkvRopeStore,
    Sample,
    SegmentSums,
)
from baize_engine.kernels.quantized import Int4Weight, Int8Weight, empty
from baize_engine.kernels.reference import BEST_BLOCK, MOST_LOGITS


class Op:
    """An op for one instruction set, called like its function in kernels/reference.py."""

    def __init__(self, name: str, implementation: str) -> None:
        self.__name__, self.implementation, self._kind = name, implementation, KINDS[name]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        operands = self._kind(*arguments, **options)
        if isinstance(operands, Embed | Attention | Sample) and operands.out is None:
            operands = replace(operands, out=_new_out(operands))
        once = Joined(self.implementation)
        once.append(operands)
        once()
        return getattr(operands, "out", None)


class Joined:
    """Ops of one instruction set that run as one call. Keeps their tensors alive."""

    def __init__(self, implementation: str) -> None:
        self.implementation, self._held = implementation, list[PlanOp]()
        self._plan = _C.Plan(implementation, torch.get_num_threads())

    def append(self, op: PlanOp) -> None:
        """Adds an op. ValueError names the operand with a wrong shape, type, device or layout."""
        self._plan.append(STRUCTS[type(op)](op))
        self._held.append(op)

    def __call__(self) -> None:
        self._plan.run(forks.usable_threads())


def op(name: str, implementation: str) -> Op:
    """The op `name` of kernels/reference.py for instruction set `implementation`."""
    return Op(name, implementation)


def quantizer(implementation: str) -> Callable[..., Int8Weight | Int4Weight]:
    """`quantize` of kernels/quantized.py for CPU tensors, with the same bits, on the calling thread."""
    return partial(_quantize, implementation)


def _quantize(
    implementation: str, weight: Tensor, kind: str, *, out: Int8Weight | Int4Weight | None = None
) -> Int8Weight | Int4Weight:
    if weight.dim() != 2 or weight.dtype not in FLOATS:
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}, wanted a float matrix (N, K)")
    rows, columns = weight.shape
    done = empty(kind, rows, columns) if out is None else out
    if done.shape != (rows, columns):
        raise ValueError(f"out has shape {done.shape}, wanted {(rows, columns)}")
    if rows and columns:
        place = address("weight", weight, (rows, columns), weight.dtype)
        _C.quantize(implementation, place, FLOATS[weight.dtype], matrix(done, columns))
    return done


def _cache_kind(cache: Tensor) -> str:
    if cache.dtype not in FLOATS:
        raise ValueError(f"k_cache is {cache.dtype}, wanted float32, float16 or bfloat16")
    return FLOATS[cache.dtype]


def _check_sum(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"the matrices have {found} rows together, wanted {wanted}")


def _check_power(name: str, count: int) -> None:
    if count < 1 or count & (count - 1):
        raise ValueError(f"{name} is of {count}, wanted a power of two")


def _new_out(op: Embed | Attention | Sample) -> Tensor:
    if isinstance(op, Embed):
        return torch.empty(op.ids.shape[0], op.weight.shape[1])
    return torch.empty_like(op.q) if isinstance(op, Attention) else torch.empty(op.logits.shape[0], dtype=torch.int64)


def _embed(op: Embed) -> _C.Embed:
    tokens, (rows, hidden) = op.ids.shape[0], op.weight.shape
    return _C.Embed(
        ids=address("ids", op.ids, (tokens,), torch.int64),
        tokens=tokens,
        kind=FLOATS[op.weight.dtype],
        weight=address("weight", op.weight, (rows, hidden), op.weight.dtype),
        rows=rows,
        hidden=hidden,
        out=address("out", op.out, (tokens, hidden)),
    )


def _qkv_rope_store(op: QkvRopeStore) -> _C.QkvRopeStore:
    (tokens, hidden), (_, heads, dim) = op.x.shape, op.q.shape
    cache, cache_kind = op.k_cache.shape, _cache_kind(op.k_cache)
    blocks, block, kv_heads, _ = cache
    if dim % 2:
        raise ValueError(f"q has heads of {dim} columns, wanted an even number")
    _check_sum(sum(w.shape[0] for w in op.weights), (heads + 2 * kv_heads) * dim)
    turns = op.cos.shape[0]
    return _C.QkvRopeStore(
        x=address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weights=[matrix(weight, hidden) for weight in op.weights],
        cos=address("cos", op.cos, (turns, dim // 2)),
        sin=address("sin", op.sin, (turns, dim // 2)),
        turns=turns,
        positions=address("positions", op.positions, (tokens,), torch.int64),
        cache=cache_kind,
        keys=address("k_cache", op.k_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        values=address("v_cache", op.v_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        places=blocks * block,
        slots=address("slots", op.slots, (tokens,), torch.int64),
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        q=address("q", op.q, (tokens, heads, dim)),
        int8_activations=op.int8_activations,
    )


def _attention(op: Attention) -> _C.Attention:
    (tokens, heads, dim), (blocks, block, kv_heads, _) = op.q.shape, op.k_cache.shape
    sequences, most = op.context_lens.shape[0], op.block_tables.shape[1]
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, wanted a multiple of the cache's {kv_heads}")
    return _C.Attention(
        q=address("q", op.q, (tokens, heads, dim)),
        cache=_cache_kind(op.k_cache),
        keys=address("k_cache", op.k_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        values=address("v_cache", op.v_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        block_tables=address("block_tables", op.block_tables, (sequences, most), torch.int32),
        query_starts=address("query_starts", op.query_starts, (sequences + 1,), torch.int32),
        context_lens=address("context_lens", op.context_lens, (sequences,), torch.int32),
        tokens=tokens,
        sequences=sequences,
        table_stride=most,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        block=block,
        blocks=blocks,
        scale=op.scale,
        out=address("out", op.out, (tokens, heads, dim)),
    )


def _linear_add(op: LinearAdd) -> _C.LinearAdd:
    tokens, columns = op.x.shape
    return _C.LinearAdd(
        out=address("out", op.out, (tokens, op.weight.shape[0])),
        x=address("x", op.x, (tokens, columns)),
        tokens=tokens,
        weight=matrix(op.weight, columns),
        int8_activations=op.int8_activations,
    )


def _segment_sums(op: SegmentSums) -> _C.SegmentSums:
    (tokens, columns), (stacked, own) = op.x.shape, op.weight.shape
    _check_power("segments", op.segments)
    if stacked % op.segments:
        raise ValueError(f"weight has {stacked} rows, wanted a multiple of segments, {op.segments}")
    if columns != op.segments * own:
        raise ValueError(f"x has {columns} columns, wanted {op.segments} segments of weight's {own}")
    return _C.SegmentSums(
        out=address("out", op.out, (tokens, stacked // op.segments)),
        x=address("x", op.x, (tokens, columns)),
        tokens=tokens,
        segments=op.segments,
        weight=matrix(op.weight, own),
        int8_activations=op.int8_activations,
    )


def _add_sums(op: AddSums) -> _C.AddSums:
    ranks, tokens, width = op.sums.shape
    _check_power("sums", ranks)
    return _C.AddSums(
        out=address("out", op.out, (tokens, width)),
        sums=address("sums", op.sums, (ranks, tokens, width)),
        ranks=ranks,
        tokens=tokens,
        width=width,
    )


def _gate_up(op: GateUp) -> _C.GateUp:
    (tokens, hidden), inner = op.x.shape, op.out.shape[1]
    _check_sum(sum(w.shape[0] for w in op.weights), 2 * inner)
    return _C.GateUp(
        x=address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weights=[matrix(weight, hidden) for weight in op.weights],
        out=address("out", op.out, (tokens, inner)),
        int8_activations=op.int8_activations,
    )


def _head(op: Head) -> _C.Head:
    (tokens, hidden), vocabulary = op.x.shape, op.weight.shape[0]
    return _C.Head(
        out=address("out", op.out, (tokens, vocabulary)),
        best=_best(op.best, tokens, vocabulary),
        x=address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weight=matrix(op.weight, hidden),
    )


def _sample(op: Sample) -> _C.Sample:
    rows, vocabulary = op.logits.shape
    if not 0 < vocabulary <= MOST_LOGITS:
        raise ValueError(f"logits have {vocabulary} columns, wanted 1 to {MOST_LOGITS}")
    narrow = op.positions.dtype == torch.int32
    return _C.Sample(
        logits=address("logits", op.logits, (rows, vocabulary)),
        best=_best(op.best, rows, vocabulary),
        rows=rows,
        vocabulary=vocabulary,
        temperature=address("temperature", op.temperature, (rows,)),
        top_k=address("top_k", op.top_k, (rows,), torch.int64),
        top_p=address("top_p", op.top_p, (rows,)),
        min_p=address("min_p", op.min_p, (rows,)),
        seeds=address("seeds", op.seeds, (rows,), torch.int64),
        sample_index=address("sample_index", op.sample_index, (rows,), torch.int64),
        positions=address("positions", op.positions, (rows,), torch.int32 if narrow else torch.int64),
        narrow=narrow,
        out=address("out", op.out, (rows,), torch.int64),
    )


def _advance(op: Advance) -> _C.Advance:
    rows, stops, most = op.tokens.shape[0], op.stops.shape[1], op.block_tables.shape[1]
    return _C.Advance(
        tokens=address("tokens", op.tokens, (rows,), torch.int64),
        rows=rows,
        ids=address("ids", op.ids, (rows,), torch.int64),
        positions=address("positions", op.positions, (rows,), torch.int64),
        slots=address("slots", op.slots, (rows,), torch.int64),
        lens=address("lens", op.lens, (rows,), torch.int32),
        left=address("left", op.left, (rows,), torch.int32),
        stops=address("stops", op.stops, (rows, stops), torch.int64),
        stops_of_row=stops,
        block_tables=address("block_tables", op.block_tables, (rows, most), torch.int32),
        table_stride=most,
        block=op.block,
    )


def _best(best: Tensor | None, rows: int, vocabulary: int) -> int:
    """The address of the blocks' greatest logits, or 0."""
    return 0 if best is None else address("best", best, (rows, -(-vocabulary // BEST_BLOCK)), torch.int32)


STRUCTS: dict[type[PlanOp], Callable[[Any], _C.PlanOp]] = {
    Embed: _embed, QkvRopeStore: _qkv_rope_store, Attention: _attention, LinearAdd: _linear_add,
    SegmentSums: _segment_sums, AddSums: _add_sums, GateUp: _gate_up, Head: _head, Sample: _sample, Advance: _advance,
}  # fmt: skip
KINDS: dict[str, type[PlanOp]] = {kind.name: kind for kind in STRUCTS}
