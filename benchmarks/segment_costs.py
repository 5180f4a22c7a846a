"""What the products of a model that ranks share cost one device: o and down by SEGMENTS parts of their columns, each part with
its own matrix, against the same products whole.

On a CPU, in turns over copies of the weights that no cache holds. Knows the ops; no model, no ranks and no exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from common import Spread
from kernel_cases import BYTES, HALF, Machine
from torch import Tensor

from baize_engine.backend.plan_ops import AddSums, LinearAdd, PlanOp, SegmentSums
from baize_engine.kernels import quantized, reference
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import SEGMENTS

PROMPT = 256  # rows from which on int8 weights meet activations in bytes, as they do in prompts


@dataclass(frozen=True)
class Costs:
    """Seconds of one product, and of it in segments with the addition of its sum."""

    whole: Spread
    segments: Spread


@dataclass(frozen=True)
class Weights:
    """Copies of a matrix, and of as many with the same shape in segments, stacked."""

    whole: list[quantized.Weight]
    segments: list[quantized.Weight]


def weights(m: Machine, config: ModelConfig, op: str, kind: str) -> Weights:
    """Random ones of `op`, "o" or "down". The two forms hold the same floats; their codes differ."""
    rows = config.hidden_size
    columns = config.num_heads * config.head_dim if op == "o" else config.intermediate_size
    drawn = torch.randn(rows, columns, dtype=torch.float16) * columns**-0.5
    stacked = drawn.unflatten(1, (SEGMENTS, -1)).transpose(0, 1).flatten(0, 1)
    both = [part if kind == "float16" else quantized.quantize(part, kind) for part in (drawn, stacked)]
    return Weights(*(m.rotation(part) for part in both))


def segment_costs(m: Machine, of: Weights, kind: str, rows: int, seconds: float) -> Costs:
    """Costs with so many rows, in turns for `seconds`, three turns at least. SystemExit where a result is off."""
    hidden, columns = of.whole[0].shape
    in_bytes = kind == "int4" or (kind == "int8" and rows >= PROMPT)
    x, sums = m.values(rows, columns, scale=0.25), m.values(1, rows, hidden)
    outs = m.values(2, rows, hidden, scale=0.1)
    before = outs[1].clone()
    right = reference.segment_sums(x, of.segments[0], segments=SEGMENTS, out=m.values(rows, hidden))

    def whole(weight: quantized.Weight) -> list[PlanOp]:
        return [LinearAdd(x, weight, out=outs[0], int8_activations=in_bytes)]

    def segments(weight: quantized.Weight) -> list[PlanOp]:
        return [
            SegmentSums(x, weight, segments=SEGMENTS, out=sums[0], int8_activations=in_bytes),
            AddSums(sums, out=outs[1]),
        ]

    first = [m.ops.compile(form(some[0])) for form, some in ((whole, of.whole), (segments, of.segments))]
    for calls in first:
        passed(calls)
    check_near(outs[1], before + right, BYTES if in_bytes else HALF)
    once = max(passed(calls) for calls in first)
    many = max(1, min(len(of.whole), int(seconds / 6 / once)))  # copies of a turn
    plans = [
        m.ops.compile([op for weight in some[:many] for op in form(weight)])
        for form, some in ((whole, of.whole), (segments, of.segments))
    ]
    found: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while len(found[0]) < 3 or time.perf_counter() < end:
        for times, calls in zip(found, plans, strict=True):
            times.append(passed(calls) / many)
    return Costs(*(Spread.of(times) for times in found))


def passed(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds that the calls take."""
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def check_near(found: Tensor, wanted: Tensor, bound: float) -> None:
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error <= bound:  # also where it is not a number
        raise SystemExit(f"the sum of segments is off by {error:.3g}, wanted at most {bound:g}")
