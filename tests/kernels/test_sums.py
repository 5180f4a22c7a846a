"""Sums of segments through the interpreter: the reference's bits, in the tree's order and no other."""

from __future__ import annotations

import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, rand

from baize_engine.kernels import reference


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize(("rows", "count"), [(1, 5), (3, 512), (7, 293)])
def test_tree(triton: Interpreter, rows: int, count: int, parts: int) -> None:
    sums = rand(parts, rows, count, seed=parts)
    got, _ = triton.call("sums", "tree", sums, out=torch.full((rows, count), float("nan")))
    assert torch.equal(got, reference.tree(sums))


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_add_sums(triton: Interpreter, activation: str, parts: int) -> None:
    before, sums = rand(3, 293, seed=9, dtype=ACTIVATIONS[activation]), rand(parts, 3, 293, seed=parts)
    got, _ = triton.call("sums", "add_sums", sums, out=before.clone())
    assert torch.equal(got, reference.add_sums(sums, out=before.clone()))
    assert torch.equal(got, (before.float() + reference.tree(sums)).to(before.dtype))


def test_neighbours_are_added_first(triton: Interpreter) -> None:
    """In order from the first, every 1 would be lost beside 2**24; in pairs, only the one that meets it alone."""
    sums = torch.tensor([2.0**24, 1, 1, 1, 1, 1, 1, 1]).view(8, 1, 1)
    got, _ = triton.call("sums", "tree", sums, out=torch.zeros(1, 1))
    assert got.item() == 2.0**24 + 6
    assert sum(sums.flatten().unbind()).item() == 2.0**24


def test_wrong_arguments_are_named(triton: Interpreter) -> None:
    with pytest.raises(ValueError, match="sums are 3, wanted 1, 2, 4 or 8"):
        triton.call("sums", "add_sums", torch.zeros(3, 2, 4), out=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"sums has shape \(2, 2, 5\), wanted contiguous \(2, 2, 4\)"):
        triton.call("sums", "tree", torch.zeros(2, 2, 5), out=torch.zeros(2, 4))
