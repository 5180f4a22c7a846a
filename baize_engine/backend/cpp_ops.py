"""The decoder's ops in C++ for CPU tensors: checks each op's operands and adds it to a `_C.Plan`, which runs in one call.

Activations are float32, the cache any float type. The order of summation never depends on the number of rows, so
`batch_invariant` changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine import _C
from baize_engine.backend import forks
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
from baize_engine.kernels.quantized import BLOCK, PANEL, Int4Weight, Int8Weight, Weight, empty
from baize_engine.kernels.reference import BEST_BLOCK, MOST_LOGITS

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


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
        self.implementation, self._plan, self._held = implementation, _C.Plan(implementation), list[PlanOp]()

    def append(self, op: PlanOp) -> None:
        """Adds an op. ValueError names the operand with a wrong shape, type, device or layout."""
        self._plan.append(STRUCTS[type(op)](op))
        self._held.append(op)

    def __call__(self) -> None:
        self._plan.run(forks.check())


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
        place = _address("weight", weight, (rows, columns), weight.dtype)
        _C.quantize(implementation, place, FLOATS[weight.dtype], _matrix(done, columns))
    return done


def _address(name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """The tensor's address. ValueError unless it is a contiguous CPU tensor of `shape` and `dtype`."""
    if tensor is None:
        raise ValueError(f"{name} is None, wanted {dtype} of {tuple(shape)} on the CPU")
    if tensor.shape != tuple(shape) or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, wanted {dtype} of "
            f"{tuple(shape)} on the CPU"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}, wanted contiguous memory")
    return tensor.data_ptr()


def _matrix(weight: Weight, columns: int) -> _C.Matrix:
    rows = weight.shape[0]
    if isinstance(weight, Tensor):
        if weight.dtype not in FLOATS:
            raise ValueError(f"weight is {weight.dtype}, wanted float32, float16 or bfloat16")
        return _C.Matrix(
            FLOATS[weight.dtype], _address("weight", weight, (rows, columns), weight.dtype), 0, rows, columns
        )
    if weight.shape[1] != columns:
        raise ValueError(f"weight has {weight.shape[1]} columns, wanted {columns}")
    if isinstance(weight, Int8Weight):
        values = _address("values", weight.values, (rows, columns), torch.int8)
        return _C.Matrix("int8", values, _address("scales", weight.scales, (rows,)), rows, columns)
    if not weight.in_panels:
        raise ValueError("weight is int4 in rows, wanted panels on the CPU")
    panels, blocks = -(-(weight.first + rows) // PANEL), -(-columns // BLOCK)
    return _C.Matrix(
        "int4",
        _address("values", weight.values, (panels, blocks, PANEL * BLOCK // 2), torch.uint8),
        _address("scales", weight.scales, (panels, blocks, PANEL), torch.int8),
        rows,
        columns,
        factors=_address("factors", weight.factors, (rows,)),
        first=weight.first,
    )


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
        ids=_address("ids", op.ids, (tokens,), torch.int64),
        tokens=tokens,
        kind=FLOATS[op.weight.dtype],
        weight=_address("weight", op.weight, (rows, hidden), op.weight.dtype),
        rows=rows,
        hidden=hidden,
        out=_address("out", op.out, (tokens, hidden)),
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
        x=_address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=_address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weights=[_matrix(weight, hidden) for weight in op.weights],
        cos=_address("cos", op.cos, (turns, dim // 2)),
        sin=_address("sin", op.sin, (turns, dim // 2)),
        turns=turns,
        positions=_address("positions", op.positions, (tokens,), torch.int64),
        cache=cache_kind,
        keys=_address("k_cache", op.k_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        values=_address("v_cache", op.v_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        places=blocks * block,
        slots=_address("slots", op.slots, (tokens,), torch.int64),
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        q=_address("q", op.q, (tokens, heads, dim)),
        int8_activations=op.int8_activations,
    )


def _attention(op: Attention) -> _C.Attention:
    (tokens, heads, dim), (blocks, block, kv_heads, _) = op.q.shape, op.k_cache.shape
    sequences, most = op.context_lens.shape[0], op.block_tables.shape[1]
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, wanted a multiple of the cache's {kv_heads}")
    return _C.Attention(
        q=_address("q", op.q, (tokens, heads, dim)),
        cache=_cache_kind(op.k_cache),
        keys=_address("k_cache", op.k_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        values=_address("v_cache", op.v_cache, (blocks, block, kv_heads, dim), op.k_cache.dtype),
        block_tables=_address("block_tables", op.block_tables, (sequences, most), torch.int32),
        query_starts=_address("query_starts", op.query_starts, (sequences + 1,), torch.int32),
        context_lens=_address("context_lens", op.context_lens, (sequences,), torch.int32),
        tokens=tokens,
        sequences=sequences,
        table_stride=most,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        block=block,
        blocks=blocks,
        scale=op.scale,
        out=_address("out", op.out, (tokens, heads, dim)),
    )


def _linear_add(op: LinearAdd) -> _C.LinearAdd:
    tokens, columns = op.x.shape
    return _C.LinearAdd(
        out=_address("out", op.out, (tokens, op.weight.shape[0])),
        x=_address("x", op.x, (tokens, columns)),
        tokens=tokens,
        weight=_matrix(op.weight, columns),
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
        out=_address("out", op.out, (tokens, stacked // op.segments)),
        x=_address("x", op.x, (tokens, columns)),
        tokens=tokens,
        segments=op.segments,
        weight=_matrix(op.weight, own),
        int8_activations=op.int8_activations,
    )


def _add_sums(op: AddSums) -> _C.AddSums:
    ranks, tokens, width = op.sums.shape
    _check_power("sums", ranks)
    return _C.AddSums(
        out=_address("out", op.out, (tokens, width)),
        sums=_address("sums", op.sums, (ranks, tokens, width)),
        ranks=ranks,
        tokens=tokens,
        width=width,
    )


def _gate_up(op: GateUp) -> _C.GateUp:
    (tokens, hidden), inner = op.x.shape, op.out.shape[1]
    _check_sum(sum(w.shape[0] for w in op.weights), 2 * inner)
    return _C.GateUp(
        x=_address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=_address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weights=[_matrix(weight, hidden) for weight in op.weights],
        out=_address("out", op.out, (tokens, inner)),
        int8_activations=op.int8_activations,
    )


def _head(op: Head) -> _C.Head:
    (tokens, hidden), vocabulary = op.x.shape, op.weight.shape[0]
    return _C.Head(
        out=_address("out", op.out, (tokens, vocabulary)),
        best=_best(op.best, tokens, vocabulary),
        x=_address("x", op.x, (tokens, hidden)),
        tokens=tokens,
        norm=_address("norm", op.norm, (hidden,)),
        eps=op.eps,
        weight=_matrix(op.weight, hidden),
    )


def _sample(op: Sample) -> _C.Sample:
    rows, vocabulary = op.logits.shape
    if not 0 < vocabulary <= MOST_LOGITS:
        raise ValueError(f"logits have {vocabulary} columns, wanted 1 to {MOST_LOGITS}")
    narrow = op.positions.dtype == torch.int32
    return _C.Sample(
        logits=_address("logits", op.logits, (rows, vocabulary)),
        best=_best(op.best, rows, vocabulary),
        rows=rows,
        vocabulary=vocabulary,
        temperature=_address("temperature", op.temperature, (rows,)),
        top_k=_address("top_k", op.top_k, (rows,), torch.int64),
        top_p=_address("top_p", op.top_p, (rows,)),
        min_p=_address("min_p", op.min_p, (rows,)),
        seeds=_address("seeds", op.seeds, (rows,), torch.int64),
        sample_index=_address("sample_index", op.sample_index, (rows,), torch.int64),
        positions=_address("positions", op.positions, (rows,), torch.int32 if narrow else torch.int64),
        narrow=narrow,
        out=_address("out", op.out, (rows,), torch.int64),
    )


def _advance(op: Advance) -> _C.Advance:
    rows, stops, most = op.tokens.shape[0], op.stops.shape[1], op.block_tables.shape[1]
    return _C.Advance(
        tokens=_address("tokens", op.tokens, (rows,), torch.int64),
        rows=rows,
        ids=_address("ids", op.ids, (rows,), torch.int64),
        positions=_address("positions", op.positions, (rows,), torch.int64),
        slots=_address("slots", op.slots, (rows,), torch.int64),
        lens=_address("lens", op.lens, (rows,), torch.int32),
        left=_address("left", op.left, (rows,), torch.int32),
        stops=_address("stops", op.stops, (rows, stops), torch.int64),
        stops_of_row=stops,
        block_tables=_address("block_tables", op.block_tables, (rows, most), torch.int32),
        table_stride=most,
        block=op.block,
    )


def _best(best: Tensor | None, rows: int, vocabulary: int) -> int:
    """The address of the blocks' greatest logits, or 0."""
    return 0 if best is None else _address("best", best, (rows, -(-vocabulary // BEST_BLOCK)), torch.int32)


STRUCTS: dict[type[PlanOp], Callable[[Any], _C.PlanOp]] = {
    Embed: _embed, QkvRopeStore: _qkv_rope_store, Attention: _attention, LinearAdd: _linear_add,
    SegmentSums: _segment_sums, AddSums: _add_sums, GateUp: _gate_up, Head: _head, Sample: _sample, Advance: _advance,
}  # fmt: skip
KINDS: dict[str, type[PlanOp]] = {kind.name: kind for kind in STRUCTS}
