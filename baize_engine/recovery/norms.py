"""Tells a weight diff from a whole model by its norm weights: near zero in the one, near one in the other."""

from __future__ import annotations

from statistics import median

from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.plan import Plan


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


def read_widened(entry: Entry, count: int) -> memoryview:
    """The first `count` elements of a tensor as float32 bytes."""
    from baize_engine import _C

    widened = memoryview(bytearray(count * 4))
    with TensorReader(entry) as reader:
        stored = reader.read(0, count, memoryview(bytearray(count * reader.size)))
    _C.widen(stored, entry.dtype, widened)
    return widened


def _mean_magnitude(entry: Entry) -> float:
    return sum(map(abs, read_widened(entry, entry.numel).cast("f"))) / max(1, entry.numel)
