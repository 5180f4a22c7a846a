"""The quantised formats, the same for GPU and CPU but for the order of int4's bytes: reference quantiser and dequantiser.

    int8:  w[n, k] ~ q[n, k] * s[n]                      q in -127..127, s float32 for each row
    int4:  w[n, k] ~ T[u[n, k]] * c[n, k // BLOCK] * f[n]  u in 0..15, c in -127..127 for each block, f float32 for each row

T is INT4_VALUES where c is even, and INT4_VALUES + INT4_SHIFT where it is odd: a block takes the table and the scale that
leave the least squared error. The values lie as weights do, denser around zero (a cubic, rounded); docs/performance.md has
the measured errors. int4 takes 4.25 bits a weight and 4 bytes a row, int8 a little over 8 bits.

A block of an int4 row is 16 bytes: byte j holds column j in the low four bits and column 16 + j in the high four. The GPU
has them row by row. On the CPU and in files PANEL rows lie together: the block's bytes 4q to 4q + 3 of the first row, then of
the second and so on, for q = 0, then for q = 1, ..., so that a 32-bit lane of a vector holds four columns of its own row.
Scales lie likewise, PANEL of a block together. What pads the last panel is zero; what pads the last block stands for zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

SCHEMES = {
    "int8": "baize-1",
    "int4": "baize-2",
}  # in saved models; a change of a layout or its meaning needs another name
BLOCK = 32  # columns that share an int4 scale
PANEL = 16  # int4 rows that lie together on the CPU
# round(0.0809585 x^3 - 0.0542717 x^2 + 11.431296 x - 4.53) for x = u - 7.5; -128 would have no counterpart in bytes
INT4_VALUES = (-127, -103, -83, -64, -49, -35, -22, -10, 1, 13, 25, 38, 53, 70, 90, 112)
INT4_SHIFT = 8
GREATEST_FACTOR = 2.1e34  # times any value and scale, 127 * 127 at most, it is finite
ROWS = 1 << 21  # weights quantised at a time, to bound temporary memory


@dataclass(frozen=True)
class Int8Weight:
    """A matrix (N, K): `values` (N, K) int8, `scales` (N,) float32."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Its tensors, in the order of `layout`."""
        return self.values, self.scales

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored)

    def rows(self, begin: int, end: int) -> Int8Weight:
        """Rows [begin, end), a view."""
        return Int8Weight(self.values[begin:end], self.scales[begin:end])


@dataclass(frozen=True)
class Int4Weight:
    """A matrix (N, K); K is `columns`, B = ceil(K / BLOCK), P = ceil((first + N) / PANEL).

    In panels: `values` (P, B, PANEL * BLOCK / 2) uint8, `scales` (P, B, PANEL) int8. Row 0 is row `first` of the first panel.
    In rows, on a GPU: `values` (N, B * BLOCK / 2), `scales` (N, B). `factors` (N,) float32.
    """

    values: Tensor
    scales: Tensor
    factors: Tensor
    columns: int
    first: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape[0], self.columns

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Its tensors, in the order of `layout`."""
        return self.values, self.scales, self.factors

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def in_panels(self) -> bool:
        return self.values.dim() == 3

    def rows(self, begin: int, end: int) -> Int4Weight:
        """Rows [begin, end), a view."""
        factors = self.factors[begin:end]
        if not self.in_panels:
            return Int4Weight(self.values[begin:end], self.scales[begin:end], factors, self.columns)
        place, last = self.first + begin, -(-(self.first + begin + factors.shape[0]) // PANEL)
        panels = slice(place // PANEL, last)
        return Int4Weight(self.values[panels], self.scales[panels], factors, self.columns, place % PANEL)


Weight = Tensor | Int8Weight | Int4Weight


Stored = tuple[str, tuple[int, ...]]  # a tensor's dtype and shape


def layout(kind: str, rows: int, columns: int) -> tuple[Stored, ...]:
    """dtype and shape of the stored tensors of a matrix (rows, columns) of `kind`: for "int8" of values and scales, for "int4"
    of values, scales and factors, in panels."""
    if kind == "int8":
        return ("int8", (rows, columns)), ("float32", (rows,))
    if kind == "int4":
        panels, blocks = -(-rows // PANEL), -(-columns // BLOCK)
        return (
            ("uint8", (panels, blocks, PANEL * BLOCK // 2)), ("int8", (panels, blocks, PANEL)), ("float32", (rows,))
        )  # fmt: skip
    raise ValueError(f"kind is {kind!r}, wanted 'int8' or 'int4'")


def matrix(kind: str, tensors: Sequence[Tensor], columns: int) -> Int8Weight | Int4Weight:
    """Make a matrix (N, columns) of its stored tensors, in the order of `layout`."""
    values, scales = tensors[:2]
    return Int8Weight(values, scales) if kind == "int8" else Int4Weight(values, scales, tensors[2], columns)


def empty(
    kind: str, rows: int, columns: int, device: str = "cpu", *, panels: bool | None = None
) -> Int8Weight | Int4Weight:
    """An unfilled matrix of `kind`; int4 in panels, what pads them zero, or in rows: by default panels on the CPU only."""
    stored = layout(kind, rows, columns)
    panels = device == "cpu" if panels is None else panels
    if kind == "int4" and not panels:
        blocks = -(-columns // BLOCK)
        stored = ("uint8", (rows, blocks * BLOCK // 2)), ("int8", (rows, blocks)), ("float32", (rows,))
    tensors = [torch.empty(shape, dtype=getattr(torch, dtype), device=device) for dtype, shape in stored]
    if kind == "int4" and panels and rows % PANEL:
        tensors[0][-1:].zero_()
        tensors[1][-1:].zero_()
    return matrix(kind, tensors, columns)


def in_rows(weight: Int4Weight) -> Int4Weight:
    """The matrix row by row; itself if it is."""
    if not weight.in_panels:
        return weight
    panels, blocks, _ = weight.values.shape
    rows = slice(weight.first, weight.first + weight.shape[0])
    quads = weight.values.view(panels, blocks, 4, PANEL, 4).permute(0, 3, 1, 2, 4)
    values = quads.reshape(panels * PANEL, blocks * BLOCK // 2)[rows]
    scales = weight.scales.permute(0, 2, 1).reshape(panels * PANEL, blocks)[rows]
    return Int4Weight(values.contiguous(), scales.contiguous(), weight.factors, weight.columns)


def in_panels(weight: Int4Weight) -> Int4Weight:
    """The matrix in panels, the first of which begins with row 0; itself if it is."""
    if weight.in_panels and weight.first == 0:
        return weight
    flat = in_rows(weight)
    rows, blocks = flat.scales.shape
    values, scales = (
        torch.zeros(shape, dtype=getattr(torch, dtype), device=flat.values.device)
        for dtype, shape in layout("int4", rows, weight.columns)[:2]
    )
    out = Int4Weight(values, scales, flat.factors, flat.columns)
    _put(flat.values.view(rows, blocks, 4, 4), flat.scales, out)
    return out


def _put(quads: Tensor, scales: Tensor, out: Int4Weight) -> None:
    """Writes the bytes (N, B, 4, 4) and scales (N, B) of rows to `out`, which may be in panels."""
    rows, blocks = scales.shape
    if not out.in_panels:
        out.values.copy_(quads.flatten(1))
        out.scales.copy_(scales)
        return
    begin = 0
    while begin < rows:
        panel, lane = divmod(out.first + begin, PANEL)
        whole = (rows - begin) // PANEL if lane == 0 else 0
        count = whole * PANEL or min(PANEL - lane, rows - begin)
        to = out.values[panel : panel + max(whole, 1)].view(-1, blocks, 4, PANEL, 4)[:, :, :, lane : lane + count]
        part = slice(begin, begin + count)
        to.copy_(quads[part].view(max(whole, 1), -1, blocks, 4, 4).permute(0, 2, 3, 1, 4))
        to = out.scales[panel : panel + max(whole, 1)][:, :, lane : lane + count]
        to.copy_(scales[part].view(max(whole, 1), -1, blocks).permute(0, 2, 1))
        begin += count


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
    rows, blocks = block.shape[0], -(-block.shape[1] // BLOCK)
    padded = torch.nn.functional.pad(block, (0, blocks * BLOCK - block.shape[1])).view(rows, blocks, BLOCK)
    extreme = padded.gather(2, padded.abs().argmax(2, keepdim=True))
    extreme = torch.where(extreme == 0, 1.0, extreme)
    x = padded / extreme * 127  # the extreme is 127: sums of products with codes' values are whole numbers in float32
    (plain, gain), (shifted, other) = (_best_scale(x, shift) for shift in (0, 1))
    odd = other > gain
    wanted, least = torch.where(odd, shifted, plain), odd.float()
    top = (wanted * extreme).abs().amax(1, keepdim=True)
    float32 = torch.finfo(torch.float32)
    factors = (top / torch.full_like(top, 127.0 * 127)).clamp(float32.tiny, GREATEST_FACTOR)
    step = (factors * 127 / extreme).clamp(
        -float32.max, float32.max
    )  # what one more of a scale is, where the extreme is 127
    nearest = ((wanted / step - least) * 0.5).round() * 2 + least
    best = torch.zeros_like(extreme)  # what a scale of 0 takes off the sum of squares
    codes, scales = torch.zeros_like(padded, dtype=torch.uint8), torch.zeros_like(extreme)
    for further in (0, -2, 2):
        scale = (nearest + further).clamp(-126 - least, 126 + least)
        unit = scale * step
        one = torch.where(unit == 0, 1.0, unit)
        code, along, square = _codes(x, torch.ones_like(one) / one, odd.int())
        gain = (along * 2 - unit * square) * unit  # the sum of squares less that of the errors
        better = gain > best
        best = torch.where(better, gain, best)
        codes, scales = torch.where(better, code, codes), torch.where(better, scale, scales)
    packed = codes[:, :, : BLOCK // 2] | codes[:, :, BLOCK // 2 :] << 4
    _put(packed.view(rows, blocks, 4, 4), scales[:, :, 0].to(torch.int8), out)
    out.factors.copy_(factors[:, 0, 0])


def _best_scale(x: Tensor, odd: int) -> tuple[Tensor, Tensor]:
    """The scale of each block of `x`, whose extremes are 127, that fits best with table `odd`: for the codes of
    x and of -x, that with the least squared error. Also what it takes off the sum of squares."""
    best = torch.full_like(x[:, :, :1], -1.0)
    scale = torch.zeros_like(best)
    for sign in (-1.0, 1.0):
        _, along, square = _codes(x, sign, odd)
        fitted = along / square
        gain = fitted * along
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, fitted, scale)
    return scale, best


def _codes(x: Tensor, factor: Tensor | float, odd: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of `x` times `factor` in table `odd`, uint8: of the value nearest to that whole number.

    Also the sums over blocks of the codes' values times `x`, rounded, and of their squares."""
    tables = torch.tensor([INT4_VALUES] * 2) + torch.tensor([[0], [INT4_SHIFT]])
    middles = (tables[:, 1:] + tables[:, :-1]) // 2
    nearest = torch.searchsorted(middles, torch.arange(-127, 128).repeat(2, 1))  # in both tables, of every whole number
    place = ((x * factor).clamp(-127, 127).round() + 127).int() + 255 * odd
    value = tables.gather(1, nearest).flatten().float().to(x.device)[place]
    return (
        nearest.flatten().to(x.device, torch.uint8)[place],
        _sum_of_block(value * x.round()),
        _sum_of_block(value * value),
    )


def _sum_of_block(x: Tensor) -> Tensor:
    """Sum over the last dimension, BLOCK long and kept as 1, by halves: the order is the same on every device."""
    while x.shape[-1] > 1:
        first, second = x.chunk(2, -1)
        x = first + second
    return x


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantise `weight` to (N, K) of `dtype`: value times scale, which is exact, times the factor in float32, then rounded.

    A tensor is only converted."""
    if isinstance(weight, Int8Weight):
        return (weight.values.float() * weight.scales[:, None]).to(dtype)
    if isinstance(weight, Int4Weight):
        flat = in_rows(weight)
        rows, blocks = flat.scales.shape
        packed = flat.values.view(rows, blocks, BLOCK // 2)
        codes = torch.cat([packed & 15, packed >> 4], dim=2).long()
        values = torch.tensor(INT4_VALUES, dtype=torch.float32, device=codes.device)[codes]
        scales = flat.scales[:, :, None]
        wide = (values + INT4_SHIFT * (scales & 1)) * scales.float() * flat.factors[:, None, None]
        return wide.flatten(1)[:, : weight.columns].to(dtype)
    return weight.to(dtype)


def rows(weight: Weight, begin: int, end: int) -> Weight:
    """Rows [begin, end) of any weight, a view."""
    return weight[begin:end] if isinstance(weight, Tensor) else weight.rows(begin, end)


def row_parts(weights: Sequence[Weight], counts: Sequence[int], units: int) -> list[Weight]:
    """Matrices of `counts` rows, each in `units` equal parts of its rows, in order: views. `weights`: the matrices, or one with
    their rows joined. ValueError if the rows are others, or not a multiple of `units`."""
    held = sum(weight.shape[0] for weight in weights)
    if held != sum(counts) or any(count % units for count in counts):
        wanted = ", ".join(map(str, counts))
        raise ValueError(f"weights have {held} rows, wanted {wanted}, each a multiple of {units}")
    if len(weights) == 1:
        weights = [rows(weights[0], end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
    found = []
    for weight in weights:
        step = weight.shape[0] // units
        found += [rows(weight, part * step, (part + 1) * step) for part in range(units)]
    return found


def join(weights: Sequence[Weight]) -> Weight:
    """Concatenate weights of one kind and K along their rows, in new memory."""
    first = weights[0]
    if isinstance(first, Tensor):
        return torch.cat([w for w in weights if isinstance(w, Tensor)])
    if isinstance(first, Int8Weight):
        parts = [w for w in weights if isinstance(w, Int8Weight)]
        return Int8Weight(torch.cat([w.values for w in parts]), torch.cat([w.scales for w in parts]))
    flat = [in_rows(w) for w in weights if isinstance(w, Int4Weight)]
    joined = Int4Weight(
        torch.cat([w.values for w in flat]), torch.cat([w.scales for w in flat]), torch.cat([w.factors for w in flat]),
        first.columns,
    )  # fmt: skip
    return in_panels(joined) if first.in_panels else joined
