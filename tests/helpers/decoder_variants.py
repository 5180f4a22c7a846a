"""The instruction sets of the C++ decoder, those that this machine lacks skipped with the reason; and matrices for it."""

from __future__ import annotations

import pytest
import torch

from baize_engine import _C
from baize_engine.kernels import quantized

VARIANTS = [
    pytest.param(
        name, marks=pytest.mark.skipif(_C.decoder_why_not(name) is not None, reason=str(_C.decoder_why_not(name)))
    )
    for name in _C.decoder_variants()
]


def matrix(kind: str, rows: int, columns: int) -> quantized.Weight:
    drawn = torch.randn(rows, columns) * columns**-0.5
    return quantized.quantize(drawn, kind) if kind.startswith("int") else drawn.to(getattr(torch, kind))
