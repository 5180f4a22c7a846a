"""The decoder's ops in C++ for CPU tensors: each op of a plan checked and handed to `_C.Plan`, which runs them as one call.

Activations are float32, the cache any float type. An output's order of summation does not depend on the number of rows, so
`batch_invariant` has no meaning here.
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
    Advance,
    Attention,
    Embed,
    GateUp,
    Head,
    LinearAdd,
    PlanOp,
    QkvRopeStore,
    Sample,
)
from baize_engine.kernels.quantized import GROUP, Int4Weight, Int8Weight, Weight, empty
from baize_engine.kernels.reference import BEST_BLOCK, MOST_LOGITS

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Op:
    """An op of one instruction set: a function with the signature of kernels/reference.py."""

    def __init__(self, name: str, variant: str) -> None:
        self.__name__, self.variant, self._kind = name, variant, KINDS[name]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        operands = self._kind(*arguments, **options)
        if isinstance(operands, Embed | Attention | Sample) and operands.out is None:
            operands = replace(operands, out=_new_out(operands))
        once = Joined(self.variant)
        once.append(operands)
        once()
        return getattr(operands, "out", None)


class Joined:
    """Ops of one instruction set as one call, which holds their tensors."""

    def __init__(self, variant: str) -> None:
        self.variant, self._plan, self._held = variant, _C.Plan(variant), list[PlanOp]()

    def append(self, op: PlanOp) -> None:
        """ValueError names an operand that has another shape, type or place than the op's."""
        APPENDERS[type(op)](self._plan, op)
        self._held.append(op)

    def __call__(self) -> None:
        self._plan.run(forks.check())


def op(name: str, variant: str) -> Op:
    """The op `name` of kernels/reference.py for instruction set `variant`."""
    return Op(name, variant)


def quantizer(variant: str) -> Callable[..., Int8Weight | Int4Weight]:
    """`quantize` of kernels/quantized.py for CPU tensors, on the calling thread; the same bits."""
    return partial(_quantize, variant)


def _quantize(
    variant: str, weight: Tensor, kind: str, *, out: Int8Weight | Int4Weight | None = None
) -> Int8Weight | Int4Weight:
    if weight.dim() != 2 or weight.dtype not in FLOATS:
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}, wanted a float matrix (N, K)")
    rows, columns = weight.shape
    done = empty(kind, rows, columns) if out is None else out
    if done.shape != (rows, columns):
        raise ValueError(f"out has shape {done.shape}, wanted {(rows, columns)}")
    if rows and columns:
        place = _address("weight", weight, (rows, columns), weight.dtype)
        _C.quantize(variant, place, FLOATS[weight.dtype], _matrix(done, columns))
    return done


def _address(name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Where the tensor lies; ValueError unless it is a contiguous CPU tensor of `shape` and `dtype`."""
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
    assert isinstance(weight, Int4Weight)
    groups = -(-columns // GROUP)
    values = _address("values", weight.values, (rows, groups * GROUP // 2), torch.uint8)
    return _C.Matrix("int4", values, _address("scales", weight.scales, (rows, groups), torch.float16), rows, columns)


def _cache_kind(cache: Tensor) -> str:
    if cache.dtype not in FLOATS:
        raise ValueError(f"k_cache is {cache.dtype}, wanted float32, float16 or bfloat16")
    return FLOATS[cache.dtype]


def _check_sum(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"the matrices have {found} rows together, wanted {wanted}")


def _new_out(op: Embed | Attention | Sample) -> Tensor:
    if isinstance(op, Embed):
        return torch.empty(op.ids.shape[0], op.weight.shape[1])
    return torch.empty_like(op.q) if isinstance(op, Attention) else torch.empty(op.logits.shape[0], dtype=torch.int64)


def _embed(plan: _C.Plan, op: Embed) -> None:
    tokens, (rows, hidden) = op.ids.shape[0], op.weight.shape
    where = _address("weight", op.weight, (rows, hidden), op.weight.dtype)
    plan.embed(
        _address("ids", op.ids, (tokens,), torch.int64), tokens, FLOATS[op.weight.dtype], where, rows, hidden,
        _address("out", op.out, (tokens, hidden)),
    )  # fmt: skip


def _qkv_rope_store(plan: _C.Plan, op: QkvRopeStore) -> None:
    (tokens, hidden), (_, heads, dim) = op.x.shape, op.q.shape
    blocks, block, kv_heads, _ = op.k_cache.shape
    if dim % 2:
        raise ValueError(f"q has heads of {dim} columns, wanted an even number")
    _check_sum(sum(w.shape[0] for w in op.weights), (heads + 2 * kv_heads) * dim)
    half = (op.cos.shape[0], dim // 2)
    cache = (blocks, block, kv_heads, dim)
    kind = _cache_kind(op.k_cache)
    plan.qkv_rope_store(
        _address("x", op.x, (tokens, hidden)), tokens, _address("norm", op.norm, (hidden,)), op.eps,
        [_matrix(weight, hidden) for weight in op.weights], _address("cos", op.cos, half), _address("sin", op.sin, half),
        _address("positions", op.positions, (tokens,), torch.int64), kind,
        _address("k_cache", op.k_cache, cache, op.k_cache.dtype), _address("v_cache", op.v_cache, cache, op.k_cache.dtype),
        _address("slots", op.slots, (tokens,), torch.int64), heads, kv_heads, dim, _address("q", op.q, (tokens, heads, dim)),
        op.int8_activations, op.cos.shape[0], blocks * block,
    )  # fmt: skip


def _attention(plan: _C.Plan, op: Attention) -> None:
    tokens, heads, dim = op.q.shape
    blocks, block, kv_heads, _ = op.k_cache.shape
    sequences, most = op.context_lens.shape[0], op.block_tables.shape[1]
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, wanted a multiple of the cache's {kv_heads}")
    whole, cache = (tokens, heads, dim), (blocks, block, kv_heads, dim)
    plan.attention(
        _address("q", op.q, whole), _cache_kind(op.k_cache), _address("k_cache", op.k_cache, cache, op.k_cache.dtype),
        _address("v_cache", op.v_cache, cache, op.k_cache.dtype),
        _address("block_tables", op.block_tables, (sequences, most), torch.int32),
        _address("query_starts", op.query_starts, (sequences + 1,), torch.int32),
        _address("context_lens", op.context_lens, (sequences,), torch.int32), tokens, sequences, most,
        heads, kv_heads, dim, block, blocks, op.scale, _address("out", op.out, whole),
    )  # fmt: skip


def _linear_add(plan: _C.Plan, op: LinearAdd) -> None:
    tokens, columns = op.x.shape
    out = _address("out", op.out, (tokens, op.weight.shape[0]))
    plan.linear_add(
        _address("x", op.x, (tokens, columns)), tokens, _matrix(op.weight, columns), out, op.int8_activations
    )


def _gate_up(plan: _C.Plan, op: GateUp) -> None:
    (tokens, hidden), inner = op.x.shape, op.out.shape[1]
    _check_sum(sum(w.shape[0] for w in op.weights), 2 * inner)
    plan.gate_up(
        _address("x", op.x, (tokens, hidden)), tokens, _address("norm", op.norm, (hidden,)), op.eps,
        [_matrix(weight, hidden) for weight in op.weights], _address("out", op.out, (tokens, inner)), op.int8_activations,
    )  # fmt: skip


def _head(plan: _C.Plan, op: Head) -> None:
    (tokens, hidden), vocabulary = op.x.shape, op.weight.shape[0]
    blocks = (tokens, -(-vocabulary // BEST_BLOCK))
    plan.head(
        _address("x", op.x, (tokens, hidden)), tokens, _address("norm", op.norm, (hidden,)), op.eps,
        _matrix(op.weight, hidden), _address("out", op.out, (tokens, vocabulary)),
        0 if op.best is None else _address("best", op.best, blocks, torch.int32),
    )  # fmt: skip


def _sample(plan: _C.Plan, op: Sample) -> None:
    rows, vocabulary = op.logits.shape
    if not 0 < vocabulary <= MOST_LOGITS:
        raise ValueError(f"logits have {vocabulary} columns, wanted 1 to {MOST_LOGITS}")
    blocks = (rows, -(-vocabulary // BEST_BLOCK))
    narrow = op.positions.dtype == torch.int32
    plan.sample(
        _address("logits", op.logits, (rows, vocabulary)),
        0 if op.best is None else _address("best", op.best, blocks, torch.int32), rows, vocabulary,
        _address("temperature", op.temperature, (rows,)), _address("top_k", op.top_k, (rows,), torch.int64),
        _address("top_p", op.top_p, (rows,)), _address("min_p", op.min_p, (rows,)),
        _address("seeds", op.seeds, (rows,), torch.int64), _address("sample_index", op.sample_index, (rows,), torch.int64),
        _address("positions", op.positions, (rows,), torch.int32 if narrow else torch.int64), narrow,
        _address("out", op.out, (rows,), torch.int64),
    )  # fmt: skip


def _advance(plan: _C.Plan, op: Advance) -> None:
    rows, wide, narrow = op.tokens.shape[0], torch.int64, torch.int32
    stops, most = op.stops.shape[1], op.block_tables.shape[1]
    plan.advance(
        _address("tokens", op.tokens, (rows,), wide), rows, _address("ids", op.ids, (rows,), wide),
        _address("positions", op.positions, (rows,), wide), _address("slots", op.slots, (rows,), wide),
        _address("lens", op.lens, (rows,), narrow), _address("left", op.left, (rows,), narrow),
        _address("stops", op.stops, (rows, stops), wide), stops,
        _address("block_tables", op.block_tables, (rows, most), narrow), most, op.block,
    )  # fmt: skip


KINDS: dict[str, type[PlanOp]] = {
    kind.name: kind for kind in (Embed, QkvRopeStore, Attention, LinearAdd, GateUp, Head, Sample, Advance)
}
APPENDERS: dict[type[PlanOp], Callable[[_C.Plan, Any], None]] = {
    Embed: _embed, QkvRopeStore: _qkv_rope_store, Attention: _attention, LinearAdd: _linear_add, GateUp: _gate_up,
    Head: _head, Sample: _sample, Advance: _advance,
}  # fmt: skip
