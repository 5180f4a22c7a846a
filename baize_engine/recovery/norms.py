"""Tells a weight diff from a whole model by its norm weights: near zero in the one, near one in the other."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.plan import Plan

BLOCK = 1 << 16  # elements held at a time: a norm of a published model is one block


def norm_ratio(work: Plan) -> float:
    """The median over all norm tensors of mean |other| / mean |base|; 0.0 where the base has none to compare with.

    Norm tensors are one row each (20 KB in float32 at 13B), so that this reads about 2 MB of any model.
    """
    ratios = []
    for job in work.jobs:
        if job.name.endswith("norm.weight"):
            base = _mean_magnitude(job.base)
            if base > 0:
                ratios.append(_mean_magnitude(job.other) / base)
    return median(ratios) if ratios else 0.0


def widened(entry: Entry, count: int) -> Iterator[memoryview]:
    """The first `count` elements of a tensor as float32 bytes, block by block in one buffer: a file says how many there are."""
    from baize_engine import _C

    block = min(count, BLOCK)
    out = memoryview(bytearray(block * 4))
    with TensorReader(entry) as reader:
        buffer = memoryview(bytearray(block * reader.size))
        for begin in range(0, count, BLOCK):
            end = min(begin + BLOCK, count)
            view = out[: (end - begin) * 4]
            _C.widen(reader.read(begin, end, buffer), entry.dtype, view)
            yield view


def _mean_magnitude(entry: Entry) -> float:
    total = 0.0
    for block in widened(entry, entry.numel):
        total += sum(map(abs, block.cast("f")))
    return total / max(1, entry.numel)
