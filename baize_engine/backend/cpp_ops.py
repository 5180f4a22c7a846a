"""The decoder's ops in C++ for CPU tensors, with the signatures of kernels/reference.py; a list of them runs as one call.

An op checks what it is given and appends itself to a plan of `_C`; called by itself it makes a plan of one. Activations are
float32, the cache any float type. An output's order of summation does not depend on the number of rows, so `each_row` has no
meaning here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine import _C
from baize_engine.backend import forks
from baize_engine.kernels.quantized import GROUP, Int4Weight, Int8Weight, Weight, empty
from baize_engine.kernels.reference import BEST_BLOCK, MOST_LOGITS

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Op:
    """An op of one instruction set: called as the reference's, or appended to a plan with the same arguments."""

    def __init__(self, name: str, variant: str) -> None:
        self.__name__, self.variant, self._append = name, variant, _OPS[name]

    def append(self, plan: _C.Plan, *arguments: Any, **options: Any) -> Any:
        """Adds the op to `plan`; what it will have written."""
        return self._append(plan, *arguments, **options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        plan = _C.Plan(self.variant)
        out = self._append(plan, *arguments, **options)
        plan.run(forks.check())
        return out


def joined(steps: Iterable[partial[Any]]) -> list[Callable[[], Any]]:
    """The same steps with each run of ops of one instruction set as one call; it holds their tensors."""
    done: list[Callable[[], Any]] = []
    plan: _C.Plan | None = None
    held: list[partial[Any]] = []
    variant = ""
    for step in steps:
        if not isinstance(step.func, Op):
            done.append(step)
            plan = None
            continue
        if plan is None or step.func.variant != variant:
            plan, held, variant = _C.Plan(step.func.variant), [], step.func.variant
            done.append(partial(_run, plan, held))
        step.func.append(plan, *step.args, **step.keywords)
        held.append(step)  # its tensors' memory
    return done


def _run(plan: _C.Plan, held: Sequence[Any]) -> None:
    plan.run(forks.check())


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


def _address(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Where the tensor lies; ValueError unless it is a contiguous CPU tensor of `shape` and `dtype`."""
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


def _embed(plan: _C.Plan, ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    tokens, (rows, hidden) = ids.shape[0], weight.shape
    out = torch.empty(tokens, hidden) if out is None else out
    where = _address("weight", weight, (rows, hidden), weight.dtype)
    plan.embed(
        _address("ids", ids, (tokens,), torch.int64), tokens, FLOATS[weight.dtype], where, rows, hidden,
        _address("out", out, (tokens, hidden)),
    )  # fmt: skip
    return out


def _qkv_rope_store(
    plan: _C.Plan, x: Tensor, norm: Tensor, eps: float, weights: Sequence[Weight], cos: Tensor, sin: Tensor,
    positions: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, q: Tensor, each_row: bool = False,
    coarse: bool = False,
) -> None:  # fmt: skip
    (tokens, hidden), (_, heads, dim) = x.shape, q.shape
    blocks, block, kv_heads, _ = k_cache.shape
    if dim % 2:
        raise ValueError(f"q has heads of {dim} columns, wanted an even number")
    _check_sum(sum(w.shape[0] for w in weights), (heads + 2 * kv_heads) * dim)
    half = (cos.shape[0], dim // 2)
    cache = (blocks, block, kv_heads, dim)
    kind = _cache_kind(k_cache)
    plan.qkv_rope_store(
        _address("x", x, (tokens, hidden)), tokens, _address("norm", norm, (hidden,)), eps,
        [_matrix(weight, hidden) for weight in weights], _address("cos", cos, half), _address("sin", sin, half),
        _address("positions", positions, (tokens,), torch.int64), kind, _address("k_cache", k_cache, cache, k_cache.dtype),
        _address("v_cache", v_cache, cache, k_cache.dtype), _address("slots", slots, (tokens,), torch.int64), heads, kv_heads,
        dim, _address("q", q, (tokens, heads, dim)), coarse, cos.shape[0], blocks * block,
    )  # fmt: skip


def _attention(
    plan: _C.Plan, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_starts: Tensor,
    context_lens: Tensor, scale: float, *, out: Tensor | None = None, longest: int | None = None,
) -> Tensor:  # fmt: skip
    tokens, heads, dim = q.shape
    blocks, block, kv_heads, _ = k_cache.shape
    sequences = context_lens.shape[0]
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, wanted a multiple of the cache's {kv_heads}")
    out = torch.empty_like(q) if out is None else out
    whole, cache = (tokens, heads, dim), (blocks, block, kv_heads, dim)
    plan.attention(
        _address("q", q, whole), _cache_kind(k_cache), _address("k_cache", k_cache, cache, k_cache.dtype),
        _address("v_cache", v_cache, cache, k_cache.dtype),
        _address("block_tables", block_tables, (sequences, block_tables.shape[1]), torch.int32),
        _address("query_starts", query_starts, (sequences + 1,), torch.int32),
        _address("context_lens", context_lens, (sequences,), torch.int32), tokens, sequences, block_tables.shape[1],
        heads, kv_heads, dim, block, blocks, scale, _address("out", out, whole),
    )  # fmt: skip
    return out


def _linear_add(
    plan: _C.Plan, x: Tensor, weight: Weight, *, out: Tensor, each_row: bool = False, coarse: bool = False
) -> Tensor:
    tokens, columns = x.shape
    place = _address("out", out, (tokens, weight.shape[0]))
    plan.linear_add(_address("x", x, (tokens, columns)), tokens, _matrix(weight, columns), place, coarse)
    return out


def _gate_up(
    plan: _C.Plan,
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: Sequence[Weight],
    *,
    out: Tensor,
    each_row: bool = False,
    coarse: bool = False,
) -> Tensor:
    tokens, hidden = x.shape
    _check_sum(sum(w.shape[0] for w in weights), 2 * out.shape[1])
    plan.gate_up(
        _address("x", x, (tokens, hidden)), tokens, _address("norm", norm, (hidden,)), eps,
        [_matrix(weight, hidden) for weight in weights], _address("out", out, (tokens, out.shape[1])), coarse,
    )  # fmt: skip
    return out


def _head(
    plan: _C.Plan, x: Tensor, norm: Tensor, eps: float, weight: Weight, *, out: Tensor, each_row: bool = False,
    best: Tensor | None = None,
) -> Tensor:  # fmt: skip
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    place = _address("out", out, (tokens, vocabulary))
    blocks = (tokens, -(-vocabulary // BEST_BLOCK))
    best_at = 0 if best is None else _address("best", best, blocks, torch.int32)
    plan.head(
        _address("x", x, (tokens, hidden)), tokens, _address("norm", norm, (hidden,)), eps, _matrix(weight, hidden), place,
        best_at,
    )  # fmt: skip
    return out


def _sample(
    plan: _C.Plan, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor,
    sample_index: Tensor, positions: Tensor, *, out: Tensor | None = None, best: Tensor | None = None,
) -> Tensor:  # fmt: skip
    rows, vocabulary = logits.shape
    if not 0 < vocabulary <= MOST_LOGITS:
        raise ValueError(f"logits have {vocabulary} columns, wanted 1 to {MOST_LOGITS}")
    out = torch.empty(rows, dtype=torch.int64) if out is None else out
    blocks = (rows, -(-vocabulary // BEST_BLOCK))
    narrow = positions.dtype == torch.int32
    plan.sample(
        _address("logits", logits, (rows, vocabulary)),
        0 if best is None else _address("best", best, blocks, torch.int32), rows, vocabulary,
        _address("temperature", temperature, (rows,)), _address("top_k", top_k, (rows,), torch.int64),
        _address("top_p", top_p, (rows,)), _address("min_p", min_p, (rows,)),
        _address("seeds", seeds, (rows,), torch.int64), _address("sample_index", sample_index, (rows,), torch.int64),
        _address("positions", positions, (rows,), torch.int32 if narrow else torch.int64), narrow,
        _address("out", out, (rows,), torch.int64),
    )  # fmt: skip
    return out


def _advance(
    plan: _C.Plan, tokens: Tensor, ids: Tensor, positions: Tensor, slots: Tensor, lens: Tensor, left: Tensor, stops: Tensor,
    block_tables: Tensor, block: int,
) -> None:  # fmt: skip
    rows, wide = tokens.shape[0], torch.int64
    table = (rows, block_tables.shape[1])
    plan.advance(
        _address("tokens", tokens, (rows,), wide), rows, _address("ids", ids, (rows,), wide),
        _address("positions", positions, (rows,), wide), _address("slots", slots, (rows,), wide),
        _address("lens", lens, (rows,), torch.int32), _address("left", left, (rows,), torch.int32),
        _address("stops", stops, (rows, stops.shape[1]), wide), stops.shape[1],
        _address("block_tables", block_tables, table, torch.int32), block_tables.shape[1], block,
    )  # fmt: skip


_OPS: dict[str, Callable[..., Any]] = {
    "embed": _embed, "qkv_rope_store": _qkv_rope_store, "attention": _attention, "linear_add": _linear_add,
    "gate_up": _gate_up, "head": _head, "sample": _sample, "advance": _advance,
}  # fmt: skip
