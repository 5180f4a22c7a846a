"""Tells a weight diff from a whole model by its norm weights, beside those of the base."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.norms import BLOCK, SUFFIX, mean_magnitude, why_diff
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import MismatchError
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


def refuse_swapped(base: Index, other: Index, role: str) -> None:
    """MismatchError where the base is a weight diff. Before shapes are compared: what they say of the two would lead astray."""
    if why_diff(base):
        swapped = (
            "" if why_diff(other) else f", and {other.folder}, named as the {role}, a model: were the two swapped?"
        )
        raise MismatchError(
            f"{base.folder}, named as the base, looks like a weight diff by its norm weights{swapped} (--force goes on)"
        )


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
