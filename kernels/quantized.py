"""The quantised format, the same for GPU and CPU, in memory and on disk: reference quantiser and dequantiser.

    int8:  w[n, k] ~ q[n, k] * s[n]            q in -127..127, s float32 for each row
    int4:  w[n, k] ~ (u[n, k] - 8) * s[n, g]   u in 0..15, s float16 for each group g of GROUP columns

An int4 row is ceil(K / GROUP) groups of GROUP / 2 bytes: byte j of a group holds its column j in the low four bits and column
j + GROUP / 2 in the high four, so that one mask and one shift of a 32-byte vector give 64 columns in order. Columns that pad
the last group are zero. Of several candidate scales, a group gets the one with the least squared error; README has the
measured errors by scheme and group size. int4 takes 4.25 bits a weight, int8 a little over 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEME = "baize-1"  # written into saved models; a change of the layout or its meaning needs another name
GROUP = 64  # columns that share an int4 scale
CANDIDATES = (1.0, 0.95, 0.9, 0.85)  # times the scale that maps a group's extreme to -8: less range, finer steps
ROWS = 1 << 22  # weights quantised at a time, to bound temporary memory


@dataclass(frozen=True)
class Int8Weight:
    """A matrix (N, K): `values` (N, K) int8, `scales` (N,) float32."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def rows(self, begin: int, end: int) -> Int8Weight:
        """Rows [begin, end), a view."""
        return Int8Weight(self.values[begin:end], self.scales[begin:end])


@dataclass(frozen=True)
class Int4Weight:
    """A matrix (N, K): `values` (N, groups * GROUP / 2) uint8, `scales` (N, groups) float16; K is `columns`."""

    values: Tensor
    scales: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.columns

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def rows(self, begin: int, end: int) -> Int4Weight:
        """Rows [begin, end), a view."""
        return Int4Weight(self.values[begin:end], self.scales[begin:end], self.columns)


Weight = Tensor | Int8Weight | Int4Weight


Stored = tuple[str, tuple[int, ...]]  # a tensor's dtype and shape


def layout(kind: str, rows: int, columns: int) -> tuple[Stored, Stored]:
    """dtype and shape of (values, scales) of a matrix (rows, columns) of `kind`, "int8" or "int4"."""
    if kind == "int8":
        return ("int8", (rows, columns)), ("float32", (rows,))
    if kind == "int4":
        groups = -(-columns // GROUP)
        return ("uint8", (rows, groups * GROUP // 2)), ("float16", (rows, groups))
    raise ValueError(f"kind is {kind!r}, wanted 'int8' or 'int4'")


def matrix(kind: str, values: Tensor, scales: Tensor, columns: int) -> Int8Weight | Int4Weight:
    """Make a matrix (N, columns) of its stored tensors."""
    return Int8Weight(values, scales) if kind == "int8" else Int4Weight(values, scales, columns)


def empty(kind: str, rows: int, columns: int, device: str = "cpu") -> Int8Weight | Int4Weight:
    """An unfilled matrix of `kind`."""
    values, scales = (
        torch.empty(shape, dtype=getattr(torch, dtype), device=device) for dtype, shape in layout(kind, rows, columns)
    )
    return matrix(kind, values, scales, columns)


def quantize(weight: Tensor, kind: str, *, out: Int8Weight | Int4Weight | None = None) -> Int8Weight | Int4Weight:
    """Quantise `weight` (N, K) of float32, float16 or bfloat16 to `kind`, "int8" or "int4", into `out` if given.

    Computed in float32 on the weight's device, some rows at a time, with the same bits on every device. Raises ValueError if
    a value is not finite, since it has no code, or a shape or type is wrong.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}, wanted a float matrix (N, K)")
    done = empty(kind, weight.shape[0], weight.shape[1], str(weight.device)) if out is None else out
    if done.shape != tuple(weight.shape):
        raise ValueError(f"out has shape {done.shape}, wanted {tuple(weight.shape)}")
    step = max(1, ROWS // max(1, weight.shape[1]))
    for begin in range(0, weight.shape[0], step):
        block = weight[begin : begin + step].float()
        if not bool(torch.isfinite(block).all()):
            raise ValueError("weight holds values that are not finite, which have no code")
        part = done.rows(begin, begin + step)
        if isinstance(part, Int8Weight):
            _quantize_int8(block, part)
        else:
            _quantize_int4(block, part)
    return done


def _quantize_int8(block: Tensor, out: Int8Weight) -> None:
    extreme = block.abs().amax(1)
    # divided by a tensor: on a GPU, dividing by a number multiplies by its reciprocal, an ulp off the CPU's result
    scales = (extreme / torch.full_like(extreme, 127.0)).clamp(min=torch.finfo(torch.float32).tiny)
    out.scales.copy_(scales)
    out.values.copy_((block / scales[:, None]).round().clamp(-127, 127))


def _quantize_int4(block: Tensor, out: Int4Weight) -> None:
    rows, groups = out.scales.shape
    padded = torch.nn.functional.pad(block, (0, groups * GROUP - block.shape[1])).view(rows, groups, GROUP)
    extreme = padded.gather(2, padded.abs().argmax(2, keepdim=True))  # signed, because -8 has no positive counterpart
    best = torch.full_like(extreme, float("inf"))
    codes, scales = torch.zeros_like(padded), torch.zeros_like(extreme, dtype=torch.float16)
    for factor in CANDIDATES:
        scale = (extreme * (factor / -8)).half()  # the scale as it will be read back
        wide = scale.float()
        code = (padded / torch.where(wide == 0, 1.0, wide)).round().clamp(-8, 7)
        error = _sum_of_group((code * wide - padded).square())
        better = error < best
        best = torch.where(better, error, best)
        codes, scales = torch.where(better, code, codes), torch.where(better, scale, scales)
    stored = (codes + 8).to(torch.uint8)
    low, high = stored[:, :, : GROUP // 2], stored[:, :, GROUP // 2 :]
    out.values.copy_((low | high << 4).flatten(1))
    out.scales.copy_(scales[:, :, 0])


def _sum_of_group(x: Tensor) -> Tensor:
    """Sum over the last dimension, GROUP long and kept as 1, by halves: the order is the same on every device."""
    while x.shape[-1] > 1:
        first, second = x.chunk(2, -1)
        x = first + second
    return x


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantise `weight` to (N, K) of `dtype`: code times scale in float32, rounded once. A tensor is only converted."""
    if isinstance(weight, Int8Weight):
        return (weight.values.float() * weight.scales[:, None]).to(dtype)
    if isinstance(weight, Int4Weight):
        rows, groups = weight.scales.shape
        packed = weight.values.view(rows, groups, GROUP // 2)
        codes = torch.cat([packed & 15, packed >> 4], dim=2).float() - 8
        wide = codes * weight.scales.float()[:, :, None]
        return wide.flatten(1)[:, : weight.columns].to(dtype)
    return weight.to(dtype)


def rows(weight: Weight, begin: int, end: int) -> Weight:
    """Rows [begin, end) of any weight, a view."""
    return weight[begin:end] if isinstance(weight, Tensor) else weight.rows(begin, end)


def join(weights: Sequence[Weight]) -> Weight:
    """Concatenate weights of one kind and K along their rows, in new memory."""
    first = weights[0]
    if isinstance(first, Tensor):
        return torch.cat([w for w in weights if isinstance(w, Tensor)])
    values = torch.cat([w.values for w in weights if not isinstance(w, Tensor)])
    scales = torch.cat([w.scales for w in weights if not isinstance(w, Tensor)])
    return Int8Weight(values, scales) if isinstance(first, Int8Weight) else Int4Weight(values, scales, first.columns)
