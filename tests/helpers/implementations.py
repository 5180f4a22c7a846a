"""The instruction sets of the C++ decoder, those that this machine lacks skipped with the reason; and matrices for it."""

from __future__ import annotations

import pytest
import torch

from baize_engine import _C
from baize_engine.kernels import quantized

IMPLEMENTATIONS = [
    pytest.param(row.name, marks=pytest.mark.skipif(row.why_not() is not None, reason=str(row.why_not())))
    for row in _C.implementations()
]


def matrix(kind: str, rows: int, columns: int) -> quantized.Weight:
    drawn = torch.randn(rows, columns) * columns**-0.5
    return quantized.quantize(drawn, kind) if kind.startswith("int") else drawn.to(getattr(torch, kind))
