"""Sums of segments of columns in C++, for every instruction set of this machine: equal bits, however many a call has."""

from __future__ import annotations

import pytest
import torch
from implementations import IMPLEMENTATIONS, matrix

from baize_engine.backend import cpp_ops
from baize_engine.backend.plan_ops import AddSums, SegmentSums
from baize_engine.kernels import quantized, reference
from baize_engine.model.share import SEGMENTS

KINDS = ("float32", "float16", "bfloat16", "int8", "int4")
# Columns of a segment: fewer than a vector; not whole vectors; whole ones; whole sections, in two blocks; a half section more
SHAPES = [(33, 8), (70, 172), (20, 32), (50, 640), (36, 704)]  # rows and columns


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def sums(
    implementation: str, x: torch.Tensor, weight: quantized.Weight, segments: int = SEGMENTS, coarse: bool = False
) -> torch.Tensor:
    out = torch.full((x.shape[0], weight.shape[0] // segments), float("nan"))  # no op adds to what is there
    return cpp_ops.op("segment_sums", implementation)(x, weight, segments=segments, out=out, int8_activations=coarse)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sums_against_float64(implementation: str, kind: str, rows: int, columns: int) -> None:
    """At most twice the error of plain torch: in float32 for floats, in float16 where activations become 16-bit codes."""
    weight, x = matrix(kind, SEGMENTS * rows, columns), torch.randn(9, SEGMENTS * columns)
    parts = quantized.dequantize(weight).double().unflatten(0, (SEGMENTS, rows))
    wanted = torch.einsum("tsk,snk->tn", x.double().unflatten(1, (SEGMENTS, columns)), parts)
    given = x.half() if kind.startswith("int") else x
    plain = reference.segment_sums(given, weight, segments=SEGMENTS, out=torch.empty(9, rows))
    assert error(sums(implementation, x, weight), wanted) <= 2 * error(plain, wanted)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sums_are_the_tree_of_the_products(
    implementation: str, kind: str, rows: int, columns: int, coarse: bool
) -> None:
    """Of linear_add, with each segment's activations encoded by themselves; by one call, two, four or eight."""
    weight, x = matrix(kind, SEGMENTS * rows, columns), torch.randn(40, SEGMENTS * columns)
    whole, before = sums(implementation, x, weight, coarse=coarse), torch.randn(40, rows)
    add = cpp_ops.op("linear_add", implementation)
    products = [
        add(
            x[:, s * columns : (s + 1) * columns].contiguous(), quantized.rows(weight, s * rows, (s + 1) * rows),
            out=torch.zeros(40, rows), int8_activations=coarse,
        )
        for s in range(SEGMENTS)
    ]  # fmt: skip
    assert torch.equal(whole, reference.tree(torch.stack(products)))
    for ranks in (1, 2, 4, 8):
        each = SEGMENTS // ranks
        of_ranks = torch.stack(
            [
                sums(implementation, part.contiguous(), some, each, coarse)
                for part, some in zip(
                    x.chunk(ranks, 1),
                    (quantized.rows(weight, s * rows, (s + each) * rows) for s in range(0, SEGMENTS, each)),
                    strict=True,
                )
            ]
        )
        found = cpp_ops.op("add_sums", implementation)(of_ranks, out=before.clone())
        assert torch.equal(found, before + whole), ranks
    for tokens in (1, 3, 4, 9):
        assert torch.equal(sums(implementation, x[:tokens].clone(), weight, coarse=coarse), whole[:tokens]), tokens
    for t in (0, 17, 39):
        assert torch.equal(sums(implementation, x[t : t + 1].clone(), weight, coarse=coarse), whole[t : t + 1]), t


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(implementation: str, kind: str) -> None:
    weight, x, held = matrix(kind, SEGMENTS * 300, 64), torch.randn(40, SEGMENTS * 64), torch.get_num_threads()
    parts, found = torch.randn(4, 40, 300), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            plan, out, total = cpp_ops.Joined(implementation), torch.empty(40, 300), torch.zeros(40, 300)
            plan.append(SegmentSums(x, weight, segments=SEGMENTS, out=out))
            plan.append(AddSums(out[None], out=total))
            plan.append(AddSums(parts, out=total))
            plan()
            found.append(total)
    finally:
        torch.set_num_threads(held)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], sums(implementation, x, weight) + reference.tree(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_no_token(implementation: str, kind: str) -> None:
    assert sums(implementation, torch.zeros(0, SEGMENTS * 36), matrix(kind, SEGMENTS * 20, 36)).shape == (0, 20)
    nothing = torch.zeros(0, 20)
    assert cpp_ops.op("add_sums", implementation)(torch.zeros(2, 0, 20), out=nothing).shape == (0, 20)


def test_wrong_tensors_are_refused_by_name(implementation: str) -> None:
    add, weight = cpp_ops.op("segment_sums", implementation), torch.randn(16, 8)
    x, out = torch.randn(2, 32), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="segments is of 3, wanted a power of two"):
        add(torch.randn(2, 24), weight, segments=3, out=out)
    with pytest.raises(ValueError, match="segments is of 0, wanted a power of two"):
        add(x, weight, segments=0, out=out)
    with pytest.raises(ValueError, match="weight has 18 rows, wanted a multiple of segments, 4"):
        add(x, torch.randn(18, 8), segments=4, out=out)
    with pytest.raises(ValueError, match="x has 31 columns, wanted 4 segments of weight's 8"):
        add(torch.randn(2, 31), weight, segments=4, out=out)
    with pytest.raises(ValueError, match=r"out is .*\(2, 5\).*\(2, 4\)"):
        add(x, weight, segments=4, out=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        add(x.double(), weight, segments=4, out=out)
    few = quantized.in_rows(quantized.quantize(weight, "int4"))
    with pytest.raises(ValueError, match="weight is int4 in rows, wanted panels on the CPU"):
        add(x, few, segments=4, out=out)
    total = cpp_ops.op("add_sums", implementation)
    with pytest.raises(ValueError, match="sums is of 3, wanted a power of two"):
        total(torch.zeros(3, 2, 4), out=out)
    with pytest.raises(ValueError, match=r"out is .*\(2, 4\).*\(2, 5\)"):
        total(torch.zeros(2, 2, 5), out=out)
    with pytest.raises(ValueError, match=r"sums is torch\.float16"):
        total(torch.zeros(2, 2, 4).half(), out=out)
