"""Operands of the C++ ops: what is wrong with one is said by its name."""

from __future__ import annotations

import pytest
import torch

from baize_engine.backend.operands import address, matrix
from baize_engine.kernels.quantized import in_rows, quantize


def test_an_address_is_that_of_the_memory() -> None:
    x = torch.ones(2, 3)
    assert address("x", x, (2, 3)) == x.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, r"x is None, wanted torch.float32 of \(2, 3\) on the CPU"),
        (torch.ones(3, 2), r"x is torch.float32 of shape \(3, 2\) on cpu, wanted torch.float32 of \(2, 3\)"),
        (torch.ones(2, 3).half(), r"x is torch.float16 .* wanted torch.float32"),
        (torch.ones(3, 2).t(), r"x has strides \(1, 2\), wanted contiguous memory"),
    ],
)
def test_a_wrong_operand_is_named(tensor: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        address("x", tensor, (2, 3))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_matrix_has_the_columns_that_its_activations_have(kind: str) -> None:
    weight = quantize(torch.randn(4, 64), kind)
    matrix(weight, 64)
    with pytest.raises(ValueError, match="weight has 64 columns, wanted 32"):
        matrix(weight, 32)


def test_matrices_that_no_kernel_reads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is torch.float64, wanted float32, float16 or bfloat16"):
        matrix(torch.ones(2, 2).double(), 2)
    with pytest.raises(ValueError, match="weight is int4 in rows, wanted panels on the CPU"):
        matrix(in_rows(quantize(torch.randn(4, 64), "int4")), 64)
