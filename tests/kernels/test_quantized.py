"""int8 and int4 weights: what the format promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from baize_engine.kernels import quantized, reference

KINDS = ("int8", "int4")


def draw(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.03).to(dtype)


# The format


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_bounded_by_the_step(kind: str, columns: int) -> None:
    """int8: half a step. int4: the extreme is on -8 at the best of its candidates, so that its twin may lose 2.3 steps."""
    weight = draw(20, columns)
    back = quantized.dequantize(quantized.quantize(weight, kind))
    if kind == "int8":
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((back - weight).abs() <= step / 2 * 1.001).all()
        return
    padded = torch.nn.functional.pad(weight, (0, -columns % 64)).view(20, -1, 64)
    step = (padded.abs().amax(2, keepdim=True) / 8).expand_as(padded).flatten(1)[:, :columns]
    assert ((back - weight).abs() <= step * 2.4).all()
    assert (back - weight).norm() < 0.12 * weight.norm()


def test_the_layout_of_int4_is_what_it_says() -> None:
    weight = draw(3, 130)
    packed = quantized.quantize(weight, "int4")
    assert packed.values.shape == (3, 96)
    assert packed.scales.shape == (3, 3)
    back = quantized.dequantize(packed)
    for row in range(3):
        for column in (0, 31, 32, 63, 64, 100, 129):
            group, place = divmod(column, 64)
            byte = int(packed.values[row, group * 32 + place % 32])
            code = (byte & 15 if place < 32 else byte >> 4) - 8
            assert float(back[row, column]) == code * float(packed.scales[row, group])
    assert (packed.values[:, 64 + 1 : 96] >> 4 == 8).all()  # what pads the last group is zero


def test_int4_takes_the_best_of_its_candidates() -> None:
    weight = draw(50, 640)
    chosen = (quantized.dequantize(quantized.quantize(weight, "int4")) - weight).square().view(50, 10, 64).sum(2)
    groups = weight.view(50, 10, 64)
    for factor in quantized.CANDIDATES:
        extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        scale = (extreme * factor / -8).half().float()
        other = ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(2)
        assert (chosen <= other * 1.0001).all()


class Ops(TorchDispatchMode):
    """Records torch's ops and their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.append((str(func), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_takes_only_ops_whose_bits_are_every_devices(kind: str) -> None:
    """No division by a number, which a GPU does by the reciprocal; no sum of torch's, whose order is the device's own."""
    with Ops() as ops:
        quantized.quantize(draw(5, 200), kind)
    divided = [args for name, args in ops.seen if name.startswith("aten.div")]
    assert divided
    assert all(isinstance(arg, torch.Tensor) and arg.dim() > 0 for args in divided for arg in args)
    names_ = {name.split(".")[1] for name, _ in ops.seen}
    assert not names_ & {"sum", "mean", "norm", "linalg_vector_norm", "mm", "dot", "reciprocal"}


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_a_code_stands_for_come_back(kind: str) -> None:
    weight = quantized.dequantize(quantized.quantize(draw(9, 128), kind))
    again = quantized.dequantize(quantized.quantize(weight, kind))
    assert (again - weight).abs().max() <= 2e-3 * weight.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-12, 6e4])
def test_rows_of_one_value(kind: str, value: float) -> None:
    """Zeros stay zero; what is too small for a float16 scale becomes zero; large values keep their size."""
    back = quantized.dequantize(quantized.quantize(torch.full((2, 64), value), kind))
    bound = 0.01 * value if kind == "int8" or value > 1 else value
    assert (back - value).abs().max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_join(kind: str) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    parts = [quantized.quantize(weight[:7], kind), quantized.quantize(weight[7:], kind)]
    assert torch.equal(quantized.dequantize(quantized.join(parts)), quantized.dequantize(whole))
    assert torch.equal(quantized.dequantize(quantized.rows(whole, 7, 30)), quantized.dequantize(parts[1]))
    assert whole.nbytes == (30 * 100 + 30 * 4 if kind == "int8" else 30 * 64 + 30 * 2 * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    monkeypatch.setattr(quantized, "ROWS", 700)
    again = quantized.quantize(weight, kind)
    assert torch.equal(whole.values, again.values)
    assert torch.equal(whole.scales, again.scales)


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantized.quantize(torch.tensor([[1.0, float("nan")]]), "int8")
    with pytest.raises(ValueError, match="wanted a float matrix"):
        quantized.quantize(torch.zeros(4, dtype=torch.float32), "int8")
    with pytest.raises(ValueError, match=r"kind is 'int2'"):
        quantized.quantize(torch.zeros(4, 4), "int2")
    with pytest.raises(ValueError, match=r"out has shape \(4, 5\), wanted \(4, 4\)"):
        quantized.quantize(torch.zeros(4, 4), "int8", out=quantized.empty("int8", 4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_that_of_the_dequantised_weight(kind: str) -> None:
    weight = quantized.quantize(draw(40, 96), kind)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(reference.linear(x, weight), reference.linear(x, quantized.dequantize(weight)))
