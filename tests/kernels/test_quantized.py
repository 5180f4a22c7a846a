"""int8 and int4 weights: what the format promises."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from baize_engine.kernels import quantized, reference

KINDS = ("int8", "int4")


def draw(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.03).to(dtype)


# The format


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_bounded_by_the_step(kind: str, columns: int) -> None:
    """int8: half a step. int4: half of the widest gap between values, a little more where the scale is rounded or fitted."""
    weight = draw(20, columns)
    back = quantized.dequantize(quantized.quantize(weight, kind))
    if kind == "int8":
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((back - weight).abs() <= step / 2 * 1.001).all()
        return
    padded = torch.nn.functional.pad(weight, (0, -columns % 32)).view(20, -1, 32)
    step = (padded.abs().amax(2, keepdim=True) / 112).expand_as(padded).flatten(1)[:, :columns]
    assert ((back - weight).abs() <= step * 20).all()
    assert (back - weight).norm() < 0.085 * weight.norm()


def test_the_values_of_int4_are_those_of_the_cubic() -> None:
    centred = [code - 7.5 for code in range(16)]
    cubic = [round(0.0809585 * x**3 - 0.0542717 * x**2 + 11.431296 * x - 4.53) for x in centred]
    assert list(quantized.INT4_VALUES) == cubic == sorted(set(cubic))
    assert all(abs(value) < 128 and abs(value + quantized.INT4_SHIFT) < 128 for value in cubic)


def value_of(packed: quantized.Int4Weight, row: int, column: int) -> float:
    """A value by the words of the module: in panels or in rows."""
    block, place = divmod(column, 32)
    byte = place % 16
    if packed.in_panels:
        panel, lane = divmod(packed.first + row, 16)
        stored = int(packed.values[panel, block, byte // 4 * 64 + lane * 4 + byte % 4])
        scale = int(packed.scales[panel, block, lane])
    else:
        stored, scale = int(packed.values[row, block * 16 + byte]), int(packed.scales[row, block])
    code = stored & 15 if place < 16 else stored >> 4
    return (quantized.INT4_VALUES[code] + scale % 2 * quantized.INT4_SHIFT) * scale * float(packed.factors[row])


def test_the_layouts_of_int4_are_what_they_say() -> None:
    packed = quantized.quantize(draw(19, 70), "int4")
    assert isinstance(packed, quantized.Int4Weight)
    assert (packed.values.shape, packed.scales.shape, packed.factors.shape) == ((2, 3, 256), (2, 3, 16), (19,))
    flat = quantized.in_rows(packed)
    assert (flat.values.shape, flat.scales.shape) == ((19, 48), (19, 3))
    assert {int(scale) % 2 for scale in flat.scales.flatten()} == {0, 1}  # both tables occur
    back = quantized.dequantize(packed)
    for row, column in itertools.product((0, 1, 15, 16, 18), (0, 3, 4, 15, 16, 31, 32, 63, 64, 69)):
        for form in (packed, flat):
            assert float(back[row, column]) == pytest.approx(value_of(form, row, column), rel=1e-6)
    assert not packed.values[1, :, 3 * 4 : 64].any()  # rows that pad the last panel: their first quads
    assert not packed.scales[1, :, 3:].any()
    again = quantized.in_panels(flat)
    assert all(torch.equal(a, b) for a, b in zip(again.stored, packed.stored, strict=True))
    assert quantized.in_rows(flat) is flat
    assert quantized.in_panels(packed) is packed


@pytest.mark.parametrize(("begin", "end"), [(0, 16), (3, 9), (5, 40), (16, 48), (33, 50), (47, 49)])
def test_rows_of_panels_are_views(begin: int, end: int) -> None:
    weight = draw(50, 70)
    whole = quantized.quantize(weight, "int4")
    assert isinstance(whole, quantized.Int4Weight)
    part = whole.rows(begin, end)
    assert part.first == begin % 16
    assert part.values.data_ptr() == whole.values[begin // 16].data_ptr()
    assert torch.equal(quantized.dequantize(part), quantized.dequantize(whole)[begin:end])
    alone = quantized.quantize(weight[begin:end], "int4")
    assert isinstance(alone, quantized.Int4Weight)
    moved = quantized.in_panels(part)
    assert all(torch.equal(a, b) for a, b in zip(moved.stored, alone.stored, strict=True))
    out = quantized.empty("int4", 50, 70)
    for first, last in ((begin, end), (0, begin), (end, 50)):
        quantized.quantize(weight[first:last], "int4", out=out.rows(first, last))
    assert all(torch.equal(a, b) for a, b in zip(out.stored, whole.stored, strict=True))


def test_int4_is_better_than_sixteen_even_steps() -> None:
    """Than codes around 8 with the best of four float16 scales for 64 columns, which take as many bits."""
    weight = draw(50, 640)
    found = float((quantized.dequantize(quantized.quantize(weight, "int4")) - weight).square().sum())
    groups = weight.view(50, 10, 64)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    tried = torch.stack([
        ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(2)
        for scale in ((extreme * factor / -8).half().float() for factor in (1.0, 0.95, 0.9, 0.85))
    ])  # fmt: skip
    assert found < 0.7 * float(tried.amin(0).sum())


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
    """int4's scales are rounded to 127ths of a row's greatest, and again."""
    weight = quantized.dequantize(quantized.quantize(draw(9, 128), kind))
    again = quantized.dequantize(quantized.quantize(weight, kind))
    assert (again - weight).norm() <= (2e-3 if kind == "int8" else 0.02) * weight.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-12, 6e4])
def test_rows_of_one_value(kind: str, value: float) -> None:
    """Zeros stay zero; what is too small for a float16 scale becomes zero; large values keep their size."""
    back = quantized.dequantize(quantized.quantize(torch.full((2, 64), value), kind))
    bound = 0.01 * value if kind == "int8" or value > 1 else value
    assert (back - value).abs().max() <= bound


HARD = {  # rows whose blocks are float32's least beside common ones, and its greatest
    "denormals": torch.tensor([[1.0] * 32 + [1e-42] * 32]),
    "greatest": torch.full((2, 64), 3.4e38) * torch.linspace(-1, 1, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_int4_of_the_least_and_the_greatest(name: str) -> None:
    weight = HARD[name]
    back = quantized.dequantize(quantized.quantize(weight, "int4"))
    assert back.isfinite().all()
    assert (back - weight).abs().max() <= 0.17 * weight.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_join(kind: str) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    parts = [quantized.quantize(weight[:7], kind), quantized.quantize(weight[7:], kind)]
    assert torch.equal(quantized.dequantize(quantized.join(parts)), quantized.dequantize(whole))
    assert torch.equal(quantized.dequantize(quantized.rows(whole, 7, 30)), quantized.dequantize(parts[1]))
    assert whole.nbytes == (30 * 100 + 30 * 4 if kind == "int8" else 32 * 4 * 16 + 32 * 4 + 30 * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    monkeypatch.setattr(quantized, "ROWS", 700)
    again = quantized.quantize(weight, kind)
    assert all(torch.equal(a, b) for a, b in zip(whole.stored, again.stored, strict=True))


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


@pytest.mark.parametrize("kind", ["float32", *KINDS])
@pytest.mark.parametrize("joined", [False, True])
def test_row_parts_are_views_in_order(joined: bool, kind: str) -> None:
    plain = [draw(24, 96), draw(12, 96)]
    made = plain if kind == "float32" else [quantized.quantize(each, kind) for each in plain]
    whole = quantized.dequantize(quantized.join(made))
    found = quantized.row_parts([quantized.join(made)] if joined else made, (24, 12), 4)
    assert [part.shape[0] for part in found] == [6] * 4 + [3] * 4
    assert torch.equal(torch.cat([quantized.dequantize(part) for part in found]), whole)


@pytest.mark.parametrize(("counts", "units"), [((24, 12), 5), ((24, 8), 4)])
def test_row_parts_that_do_not_fit_are_refused(counts: tuple[int, int], units: int) -> None:
    with pytest.raises(ValueError, match=rf"weights have 36 rows, wanted 24, {counts[1]}, each a multiple of {units}"):
        quantized.row_parts([draw(36, 8)], counts, units)
