"""Quantising in C++: the bits of kernels/quantized.py, for every instruction set that this machine has."""

from __future__ import annotations

import pytest
import torch
from implementations import IMPLEMENTATIONS

from baize_engine.backend import cpp_ops
from baize_engine.kernels import quantized

KINDS = ("int8", "int4")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same(implementation: str, weight: torch.Tensor, kind: str) -> None:
    wanted, found = quantized.quantize(weight, kind), cpp_ops.quantizer(implementation)(weight, kind)
    for one, other in zip(found.stored, wanted.stored, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # a zero's sign too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 65, 200, 2048])
def test_the_references_bits(implementation: str, kind: str, dtype: torch.dtype, columns: int) -> None:
    drawn = torch.randn(300, columns, generator=torch.Generator().manual_seed(columns)) * 0.03
    same(implementation, drawn.to(dtype), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_of_values(implementation: str, kind: str) -> None:
    """Rows from float32's denormals to its end: scales that are zero, denormal, infinite in float16."""
    drawn = torch.randn(400, 130, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    powers = torch.linspace(-149, 126, 400).round()
    same(implementation, torch.ldexp(drawn, powers[:, None]), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_and_ties(implementation: str, kind: str) -> None:
    """Groups whose extreme comes with both signs, whose values lie between two codes, of one value, of zeros."""
    generator = torch.Generator().manual_seed(2)
    steps = torch.randint(-16, 17, (500, 192), generator=generator).float() / 2
    same(implementation, steps, kind)
    same(implementation, steps * 127 / 8, kind)
    for value in (0.0, -0.0, 1.0, -2.5, 1e-12, 6e4, 3e38):
        same(implementation, torch.full((3, 70), value), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_and_the_greatest_in_a_row(implementation: str, kind: str) -> None:
    for weight in (
        torch.tensor([[1.0] * 32 + [1e-42] * 32]), torch.tensor([[8.0] * 32 + [9.2e-41] * 32]).bfloat16(),
        torch.full((2, 64), 3.4e38) * torch.linspace(-1, 1, 64),
    ):  # fmt: skip
        same(implementation, weight, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(implementation: str, kind: str, bad: float) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = torch.zeros(3, 70, dtype=dtype)
        weight[2, 69] = bad
        with pytest.raises(ValueError, match="not finite, which have no code"):
            cpp_ops.quantizer(implementation)(weight, kind)


def test_rows_go_where_told(implementation: str) -> None:
    """Also those that share a panel of int4 with rows before and after them, whose bytes stay."""
    weight = torch.randn(42, 100, generator=torch.Generator().manual_seed(3))
    for kind in KINDS:
        out, wanted = quantized.empty(kind, 42, 100), quantized.quantize(weight, kind)
        for begin, end in ((3, 21), (0, 3), (38, 42), (21, 38)):
            cpp_ops.quantizer(implementation)(weight[begin:end], kind, out=out.rows(begin, end))
        assert all(torch.equal(one, other) for one, other in zip(out.stored, wanted.stored, strict=True))
        with pytest.raises(ValueError, match=r"out has shape \(42, 100\), wanted \(3, 100\)"):
            cpp_ops.quantizer(implementation)(weight[:3], kind, out=out)
    with pytest.raises(ValueError, match=r"weight is torch\.int64 of shape"):
        cpp_ops.quantizer(implementation)(torch.zeros(2, 3, dtype=torch.int64), "int8")
    with pytest.raises(ValueError, match="weight has strides"):
        cpp_ops.quantizer(implementation)(torch.randn(4, 4).t(), "int8")
