"""Steps for another profiler to look at: cudaProfilerStart and Stop around some of them, NVTX ranges by layer and op.

Measures nothing itself: torch's profiler and nsys or ncu cannot both use the GPU's counters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attribution import Place
from decode_step import DecodeStep
from roofline import synchronize
from trace_events import numbers


def step_range(text: str) -> range:
    """The steps A to B - 1 of "A:B"; for argparse."""
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A < B, such as 2:4 for the steps 2 and 3")
    return range(int(first), int(end))


def run(step: DecodeStep, chosen: range, by_op: bool) -> str:
    """Runs all steps up to the last of `chosen`, the profiler being on for those; says so.

    `by_op`: the host launches each op by itself, within ranges of its layer and its name; else a step is a graph, whose
    kernels a range of the host does not reach.
    """
    plan, where = step.plan(), step.places()
    for number in range(chosen.stop):
        if number == chosen.start:
            synchronize(step.model.device)
            torch.cuda.profiler.start()
        with nvtx_range(f"step {number}"):
            if by_op:
                run_by_op(plan, where)
            else:
                step.run()
    synchronize(step.model.device)
    torch.cuda.profiler.stop()
    how = "op by op" if by_op else "as graphs"
    return f"{chosen.stop} steps {how}, a profiler's range around {numbers(chosen)}"


def run_by_op(plan: Sequence[Callable[[], Any]], where: Sequence[Place]) -> None:
    """One step, with a range for each layer and in it one for each op."""
    layer: int | None = None
    for place, op in zip(where, plan, strict=True):
        if place.layer != layer:
            if layer is not None:
                torch.cuda.nvtx.range_pop()
            if place.layer is not None:
                torch.cuda.nvtx.range_push(f"layer {place.layer}")
            layer = place.layer
        with nvtx_range(place.op):
            op()
    if layer is not None:
        torch.cuda.nvtx.range_pop()


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
