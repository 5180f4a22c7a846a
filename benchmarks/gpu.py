"""Timing on a GPU without the host: calls captured in one CUDA graph, and the device's ceilings measured that way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil

import torch
from bandwidth import memory_bandwidth
from common import Spread, measure

from baize_engine.model import graphs

LONG = 2e-3  # seconds that a replay should take: hundreds of times the gap between two replays
ROUNDS = 64  # most repetitions of the calls in a graph
COPIED = 1 << 30  # bytes of the copied tensor: many times any L2
SIDE = {"cpu": 1024, "cuda": 8192}  # of the multiplied matrices: enough tiles for every core


def gpu_spread(calls: Sequence[Callable[[], object]], repeats: int) -> Spread:
    """Seconds of one call, the mean of `calls` in a replay, over `repeats` replays that follow each other.

    The calls stand for one piece of work on different memory: together they should touch more than the L2 holds. They must
    neither wait for the device nor depend on the host. In the graph each follows the one before as in a decode step.
    """
    graphs.run_aside(calls)
    torch.cuda.synchronize()
    once = min(_replays(graphs.capture(calls), 3))
    rounds = min(ROUNDS, max(1, ceil(LONG / once)))
    seconds = _replays(graphs.capture([*calls] * rounds), repeats)
    return Spread.of(each / (rounds * len(calls)) for each in seconds)


def ceilings(device: str) -> dict[str, float]:
    """copy_GB/s of a large copy on the device, bytes read plus written, and matmul_TFLOP/s of large random matrices.

    The product is in float16 on a GPU and in float32 on a CPU.
    """
    kind = torch.device(device).type
    side = SIDE[kind]
    shape, dtype = (side, side), torch.float16 if kind == "cuda" else torch.float32
    left, right = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    if kind == "cpu":
        peak = measure(lambda: torch.mm(left, right, out=out), 5).median
        copy = memory_bandwidth(torch.get_num_threads())["copy"]
    else:
        peak = gpu_spread([lambda: torch.mm(left, right, out=out)], 30).median
        source = torch.randn(COPIED // 4, device=device)
        target = torch.empty_like(source)
        copy = 2 * COPIED / gpu_spread([lambda: target.copy_(source)], 30).median / 1e9
    return {"copy_GB/s": copy, "matmul_TFLOP/s": 2 * side**3 / peak / 1e12}


def _replays(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    """Seconds of each of `count` replays, two uncounted ones first; nothing waits between them."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    for _ in range(2):
        graph.replay()
    for mark in marks[:-1]:
        mark.record()
        graph.replay()
    marks[-1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e-3 for begin, end in pairwise(marks)]
