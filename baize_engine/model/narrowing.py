"""Finite weights that become infinite in a type of less range than their file's: counted, and reported in one warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from baize_engine.errors import BaizeWarning

# ranked by their largest values
RANGE = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def overflowed(read: Tensor, made: Tensor) -> int:
    """The number of finite values of `read` that are infinite in `made`, the same values in another type."""
    if made.dtype == read.dtype or RANGE[made.dtype] >= RANGE[read.dtype] or not made.numel():
        return 0
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(made)):  # the usual case, which needs no temporary memory
        return 0
    return int((torch.isinf(made) & torch.isfinite(read)).sum())


def warn_overflow(lost: Iterable[tuple[str, int]], dtype: str) -> None:
    """One BaizeWarning about the (tensor name, number of values that became infinite in `dtype`) of `lost`, if any did."""
    counts: dict[str, int] = {}
    for name, count in lost:
        if count:
            counts[name] = counts.get(name, 0) + count
    if counts:
        first = next(iter(counts))
        others = f" and {len(counts) - 1} other tensor(s)" if len(counts) > 1 else ""
        warnings.warn(
            f"{first}{others}: {sum(counts.values())} finite value(s) left the range of {dtype} and became infinite: "
            "wanted dtype bfloat16 or float32",
            BaizeWarning,
            stacklevel=2,
        )
