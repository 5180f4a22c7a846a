"""The ops of the decoder's plans: one dataclass per op, with the operands of its function in kernels/reference.py.

A plan is a list of ops over memory at fixed addresses, made once and run many times; backend/choose.py turns it into calls.
Knows neither the model nor the backends. reference.py documents the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from baize_engine.kernels.quantized import Weight


@dataclass(frozen=True, eq=False)
class PlanOp:
    """An op and its operands. `name` is its function in kernels/reference.py."""

    name: ClassVar[str]

    def operands(self) -> dict[str, Any]:
        """The keyword arguments of the function."""
        return {operand.name: getattr(self, operand.name) for operand in fields(self)}


@dataclass(frozen=True, eq=False)
class HostCall(PlanOp):
    """Something that the host does between ops, such as an exchange with other devices: function(*tensors)."""

    name = "host_call"
    function: Callable[..., object]
    tensors: tuple[Tensor, ...]

    def __call__(self) -> None:
        self.function(*self.tensors)


@dataclass(frozen=True, eq=False)
class Embed(PlanOp):
    name = "embed"
    ids: Tensor
    weight: Tensor
    out: Tensor | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class QkvRopeStore(PlanOp):
    name = "qkv_rope_store"
    x: Tensor
    norm: Tensor
    eps: float
    weights: Sequence[Weight]
    cos: Tensor
    sin: Tensor
    positions: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor
    q: Tensor = field(kw_only=True)
    batch_invariant: bool = field(default=False, kw_only=True)
    int8_activations: bool = field(default=False, kw_only=True)
    units: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Attention(PlanOp):
    name = "attention"
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_starts: Tensor
    context_lens: Tensor
    scale: float
    out: Tensor | None = field(default=None, kw_only=True)
    max_context: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class LinearAdd(PlanOp):
    name = "linear_add"
    x: Tensor
    weight: Weight
    out: Tensor = field(kw_only=True)
    batch_invariant: bool = field(default=False, kw_only=True)
    int8_activations: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class SegmentSums(PlanOp):
    name = "segment_sums"
    x: Tensor
    weight: Weight
    segments: int = field(kw_only=True)
    out: Tensor = field(kw_only=True)
    batch_invariant: bool = field(default=False, kw_only=True)
    int8_activations: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class AddSums(PlanOp):
    name = "add_sums"
    sums: Tensor
    out: Tensor = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class GateUp(PlanOp):
    name = "gate_up"
    x: Tensor
    norm: Tensor
    eps: float
    weights: Sequence[Weight]
    out: Tensor = field(kw_only=True)
    batch_invariant: bool = field(default=False, kw_only=True)
    int8_activations: bool = field(default=False, kw_only=True)
    units: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Head(PlanOp):
    name = "head"
    x: Tensor
    norm: Tensor
    eps: float
    weight: Weight
    out: Tensor = field(kw_only=True)
    batch_invariant: bool = field(default=False, kw_only=True)
    best: Tensor | None = field(default=None, kw_only=True)
    units: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Sample(PlanOp):
    name = "sample"
    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    sample_index: Tensor
    positions: Tensor
    out: Tensor | None = field(default=None, kw_only=True)
    best: Tensor | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Advance(PlanOp):
    name = "advance"
    tokens: Tensor
    ids: Tensor
    positions: Tensor
    slots: Tensor
    lens: Tensor
    left: Tensor
    stops: Tensor
    block_tables: Tensor
    block: int
