"""Dequantisation on a GPU, through the interpreter: the reference's bits."""

from __future__ import annotations

import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, matrix

from baize_engine.kernels import quantized
from baize_engine.kernels.dequantize import stored_parts


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (9, 200), (30, 1100)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_dequantize_gives_the_references_bits(
    triton: Interpreter, kind: str, rows: int, columns: int, activation: str
) -> None:
    weight = matrix(rows, columns, kind, torch.float32)
    got, _ = triton.call("dequantize", "dequantize", weight, ACTIVATIONS[activation])
    assert torch.equal(got, quantized.dequantize(weight, ACTIVATIONS[activation]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_byte_and_every_scale_of_int4(triton: Interpreter, activation: str) -> None:
    scales = torch.arange(-127, 128, dtype=torch.int8)[:, None].expand(255, 16).contiguous()
    values = torch.arange(256, dtype=torch.uint8).expand(255, 256).contiguous()
    weight = quantized.Int4Weight(values, scales, torch.linspace(-1e-3, 1e-3, 255), 512)
    got, _ = triton.call("dequantize", "dequantize", weight, ACTIVATIONS[activation])
    assert torch.equal(got, quantized.dequantize(weight, ACTIVATIONS[activation]))


def test_panels_are_put_into_rows_on_the_cpu(triton: Interpreter) -> None:
    values = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    weight = quantized.quantize(values, "int4")
    assert weight.in_panels
    got, _ = triton.call("dequantize", "dequantize", weight, torch.float16)
    assert torch.equal(got, quantized.dequantize(weight, torch.float16))


def test_panels_are_refused_elsewhere() -> None:
    weight = quantized.quantize(torch.ones(20, 64), "int4")
    there = [tensor.to("meta") for tensor in weight.stored]
    with pytest.raises(ValueError, match=r"int4 weight of shape \(20, 64\) is in panels, wanted rows"):
        stored_parts(quantized.Int4Weight(*there, weight.columns))
