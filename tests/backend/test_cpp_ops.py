"""The decoder's C++ ops as they are called: what they refuse, by the operand's name, and threads that change no bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from implementations import IMPLEMENTATIONS, matrix

from baize_engine import _C
from baize_engine.backend import cpp_ops
from baize_engine.kernels import quantized


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_threads_change_no_bit(implementation: str) -> None:
    weight, x, held = matrix("float16", 500, 256), torch.randn(3, 256), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpp_ops.op("linear_add", implementation)(x, weight, out=torch.zeros(3, 500)))
    finally:
        torch.set_num_threads(held)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_numbers_of_threads_that_no_team_has_are_refused(threads: int) -> None:
    plan = _C.Plan("scalar", 1)
    for call in (lambda: _C.Plan("scalar", threads), lambda: plan.run(threads)):
        with pytest.raises(ValueError, match=f"threads is {threads}, wanted 1 to 1024"):
            call()


def test_places_that_are_not_there_are_refused(implementation: str) -> None:
    x, ones, weight = torch.randn(1, 16), torch.ones(16), torch.randn(48, 16)
    turns, cache = torch.ones(4, 8), torch.zeros(2, 3, 16, 1, 16)
    run = cpp_ops.op("qkv_rope_store", implementation)
    for position, slot, message in (
        (4, 0, "position 4, wanted 0 to 3"),
        (0, 48, "slot 48, wanted 0 to 47"),
        (0, -1, "slot -1"),
    ):
        with pytest.raises(IndexError, match=message):
            run(
                x, ones, 1e-5, [weight], turns, turns, torch.tensor([position]), *cache, torch.tensor([slot]),
                q=torch.zeros(1, 1, 16),
            )  # fmt: skip
    attend = cpp_ops.op("attention", implementation)
    one, starts = torch.zeros(1, 1, 16), torch.tensor([0, 1], dtype=torch.int32)
    tables = torch.zeros(1, 2, dtype=torch.int32)
    for context, table, message in (
        (33, [0, 0], "context 33, wanted 1 to 32"),
        (0, [0, 0], "context 0, wanted 1 to 32"),
        (17, [0, 3], "block 3, wanted 0 to 2"),
        (17, [-1, 0], "block -1"),
    ):
        with pytest.raises(IndexError, match=message):
            tables = torch.tensor([table], dtype=torch.int32)
            attend(one, *cache, tables, starts, torch.tensor([context], dtype=torch.int32), 1.0)
    tables, two, lens = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(3, 1, 16), torch.tensor([9, 9]).int()
    for many, begins in (
        (3, [0, 2, 2]),
        (3, [1, 2, 3]),
        (3, [0, 1, 4]),
        (3, [0, 2, 1]),
        (2, [0, 2, 2]),
    ):
        with pytest.raises(IndexError, match="has queries"):
            attend(two[:many].clone(), *cache, tables, torch.tensor(begins, dtype=torch.int32), lens, 1.0)
    with pytest.raises(IndexError, match="context 1, wanted 2 to 32"):
        attend(two, *cache, tables, torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([1, 9]).int(), 1.0)
    nothing = torch.zeros(0, 1, 16)
    starts = torch.zeros(2, dtype=torch.int32)
    assert attend(nothing, *cache, tables[:1], starts, torch.tensor([5], dtype=torch.int32), 1.0).shape == (0, 1, 16)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_embed(implementation: str, kind: str) -> None:
    weight, ids = torch.randn(20, 37).to(getattr(torch, kind)), torch.tensor([3, 19, 0])
    assert torch.equal(cpp_ops.op("embed", implementation)(ids, weight), weight[ids].float())
    with pytest.raises(IndexError, match="token id 20, wanted 0 to 19"):
        cpp_ops.op("embed", implementation)(torch.tensor([20]), weight)


def test_wrong_tensors_are_refused_by_name(implementation: str) -> None:
    add = cpp_ops.op("linear_add", implementation)
    weight = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"weight is torch\.float32 of shape \(4, 8\).*\(4, 9\)"):
        add(torch.randn(2, 9), weight, out=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"out is .*\(2, 3\)"):
        add(torch.randn(2, 8), weight, out=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        add(torch.randn(2, 8).double(), weight, out=torch.zeros(2, 4))
    few = quantized.quantize(torch.randn(4, 8), "int4")
    with pytest.raises(ValueError, match=r"values is .*\(1, 32, 256\)"):
        add(torch.randn(2, 1000), replace(few, columns=1000), out=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="weight is int4 in rows, wanted panels on the CPU"):
        add(torch.randn(2, 8), quantized.in_rows(few), out=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="x has strides"):
        add(torch.randn(8, 2).t(), weight, out=torch.zeros(2, 4))
