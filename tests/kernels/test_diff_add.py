"""The Triton diff_add through the interpreter: equal bits, sums and counts with the reference definition."""

from __future__ import annotations

import pytest
import torch
from diff_oracle import DTYPES, bits, draw
from interpreter import Interpreter

from baize_engine.kernels import reference

GUARD = 64


def check(triton: Interpreter, base: torch.Tensor, diff: torch.Tensor, out: str, subtract: bool = False) -> None:
    """A guard zone lies on either side of the output: a stray store of the interpreter would corrupt the process unseen."""
    memory = torch.full((base.numel() + 2 * GUARD,), 7.0, dtype=DTYPES[out])
    target = memory[GUARD : GUARD + base.numel()]
    stats, (_, _, written, _) = triton.call("diff_add", "diff_add", base, diff, target, subtract=subtract)
    wanted, oracle = reference.diff_add(base, diff, DTYPES[out], subtract=subtract)
    assert torch.equal(bits(written), bits(wanted))
    around = torch.cat([_whole(written)[:GUARD], _whole(written)[GUARD + base.numel() :]])
    assert around.numel() == 2 * GUARD
    assert torch.equal(around, torch.full_like(around, 7.0))
    assert torch.equal(stats.chunk_sums.nan_to_num(1.5, 2.5, 3.5), oracle.chunk_sums.nan_to_num(1.5, 2.5, 3.5))
    assert (stats.overflowed, stats.nonfinite) == (oracle.overflowed, oracle.nonfinite)


def _whole(view: torch.Tensor) -> torch.Tensor:
    """All of the storage that a tensor is a view of."""
    return torch.tensor([], dtype=view.dtype).set_(view.untyped_storage())


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("diff", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
def test_every_mix_of_types(triton: Interpreter, base: str, diff: str, out: str) -> None:
    check(triton, draw(3077, DTYPES[base], 1), draw(3077, DTYPES[diff], 2), out)


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 65535, 65536, 65537, 2 * 65536 + 1031])
def test_every_length(triton: Interpreter, length: int) -> None:
    check(triton, draw(length, torch.float16, 3), draw(length, torch.float32, 4), "float16")


@pytest.mark.parametrize("out", DTYPES)
def test_subtract(triton: Interpreter, out: str) -> None:
    check(triton, draw(66000, torch.float16, 5), draw(66000, torch.float16, 6), out, subtract=True)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern(triton: Interpreter, dtype: str, out: str) -> None:
    every = torch.arange(65536).to(torch.int16).view(DTYPES[dtype])
    check(triton, every, torch.full((65536,), -0.0), out)


@pytest.mark.parametrize("out", ["float16", "bfloat16"])
def test_ties_and_overflow(triton: Interpreter, out: str) -> None:
    finite = torch.arange(0x7C00 if out == "float16" else 0x7F80).to(torch.int16).view(DTYPES[out]).float()
    middle = ((finite[:-1].double() + finite[1:].double()) / 2).float()
    steps = bits(middle.clone())
    edge = torch.tensor([65504.0, 65519.99, 65520.0, -65520.0, 3.4e38, float("inf"), float("-inf"), float("nan")])
    near = torch.cat([middle, (steps - 1).view(torch.float32), (steps + 1).view(torch.float32), edge])
    check(triton, near, torch.full_like(near, -0.0), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": torch.zeros(4, dtype=torch.int32)}, "base is torch.int32"),
        ({"diff": torch.zeros(5)}, r"diff has shape \(5,\), wanted contiguous \(4,\)"),
        ({"out": torch.zeros(8)[::2]}, r"out has shape \(4,\), wanted contiguous"),
        ({"base": torch.zeros(2, 2)}, r"base has shape \(2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(triton: Interpreter, change: dict, message: str) -> None:
    call = {"base": torch.zeros(4), "diff": torch.zeros(4), "out": torch.zeros(4), **change}
    with pytest.raises(ValueError, match=message):
        triton.call("diff_add", "diff_add", *call.values())


def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    from baize_engine.kernels.diff_add import diff_add

    with pytest.raises(ValueError, match="base is on cpu, wanted a GPU"):
        diff_add(torch.zeros(4), torch.zeros(4), torch.zeros(4))
