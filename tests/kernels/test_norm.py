"""RMSNorm's kernel through the interpreter: against a float64 oracle, in place, and row by row."""

from __future__ import annotations

import oracles
import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, EPS, case

from baize_engine.kernels import reference


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 64), (3, 200), (2, 1100)])  # less than the kernel's lanes, and more
def test_rms_norm(triton: Interpreter, rows: int, hidden: int, activation: str) -> None:
    x, weight = case(rows, hidden, ACTIVATIONS[activation])
    got, _ = triton.call("norm", "rms_norm", x, weight, EPS)
    oracles.no_worse(got, reference.rms_norm(x, weight, EPS), oracles.rms_norm(x, weight, EPS))


def test_a_rows_norm_is_the_same_alone(triton: Interpreter) -> None:
    x, weight = case(4, 200, torch.float16)
    together, _ = triton.call("norm", "rms_norm", x, weight, EPS)
    alone, _ = triton.call("norm", "rms_norm", x[2:3].clone(), weight, EPS)
    assert torch.equal(together[2:3], alone)


def test_wrong_shapes_are_named(triton: Interpreter) -> None:
    x, _ = case(2, 64, torch.float16)
    with pytest.raises(ValueError, match=r"weight has shape \(63,\), wanted contiguous \(64,\)"):
        triton.call("norm", "rms_norm", x, torch.ones(63).half(), EPS)
    with pytest.raises(ValueError, match=r"x has shape \(64, 2\) \(strided\)"):
        triton.call("norm", "rms_norm", x.t(), torch.ones(2).half(), EPS)
