"""Dequantisation on a GPU, through the interpreter: the reference's bits."""

from __future__ import annotations

import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, matrix

from baize_engine.kernels import quantized


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (9, 200), (30, 1100)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_dequantize_gives_the_references_bits(
    triton: Interpreter, kind: str, rows: int, columns: int, activation: str
) -> None:
    weight = matrix(rows, columns, kind, torch.float32)
    got, _ = triton.call("dequantize", "dequantize", weight, ACTIVATIONS[activation])
    assert torch.equal(got, quantized.dequantize(weight, ACTIVATIONS[activation]))
