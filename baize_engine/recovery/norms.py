"""Tells a weight diff from a whole model by its norm weights, beside those of the base."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.norms import BLOCK, SUFFIX, mean_magnitude
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.plan import Plan


def norm_ratio(work: Plan) -> float:
    """The median over all norm tensors of mean |other| / mean |base|; 0.0 where the base has none to compare with."""
    ratios = []
    for job in work.added:
        if job.name.endswith(SUFFIX):
            base = mean_magnitude(job.base)
            if base > 0:
                ratios.append(mean_magnitude(job.other) / base)
    return median(ratios) if ratios else 0.0


def widened(entry: Entry, count: int, first: int = 0) -> Iterator[memoryview]:
    """`count` elements of a tensor from `first` on as float32 bytes, in blocks of one buffer: files say how many."""
    from baize_engine import _C

    block = min(count, BLOCK)
    out = memoryview(bytearray(block * 4))
    with TensorReader(entry) as reader:
        buffer = memoryview(bytearray(block * reader.size))
        for begin in range(first, first + count, BLOCK):
            end = min(begin + BLOCK, first + count)
            view = out[: (end - begin) * 4]
            _C.widen(reader.read(begin, end, buffer), entry.dtype, view)
            yield view
