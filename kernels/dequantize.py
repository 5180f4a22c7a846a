"""Dequantisation on a GPU: of codes, inlined by the products, and of whole matrices, which cuBLAS multiplies for prompts.

int8:  w[n, k] = q[n, k] * s[n]      int4, in rows:  w[n, k] = T[u[n, k]] * c[n, k // BLOCK] * f[n]      as kernels/quantized.py
"""

import torch
import triton
import triton.language as tl

from .launch import check, check_device, interpreting, pdl, wait_for_inputs
from .quantized import BLOCK, INT4_SHIFT, INT4_VALUES, Int4Weight, Int8Weight, in_rows

ROWS, COLUMNS = 8, 512  # weights that a program dequantises; an int4 column takes half a byte

# Codes to float16 without int-to-float conversions, which run at an eighth of the rate of arithmetic: the code is put into the
# low bits of the number 1024, and then 1024 (and the code's offset) is subtracted. Exact. Four codes in a register.
CODES8 = tl.constexpr("""
{
.reg .b32 t, c;
xor.b32 t, $2, 0x80808080;
mov.b32 c, 0x64806480;
prmt.b32 $0, t, 0x64646464, 0x5150;
prmt.b32 $1, t, 0x64646464, 0x5352;
sub.f16x2 $0, $0, c;
sub.f16x2 $1, $1, c;
}
""")

# int4 codes to values by looking bytes up: eight bytes in two registers, chosen by three bits of a code, once for the codes
# below 8 and once for the others, and then one of the two by the fourth bit. A byte is the value + 128; what is then subtracted
# from the number 1024 + byte is BIAS, or BIAS - SHIFT where the block's scale is odd.
VALUES = tl.constexpr(INT4_VALUES)
SHIFT = tl.constexpr(INT4_SHIFT)
BIAS = tl.constexpr(1024 + 128)
TABLE = ["0x" + bytes(INT4_VALUES[i] + 128 for i in range(4 * r + 3, 4 * r - 1, -1)).hex() for r in range(4)]
CODES4 = tl.constexpr(f"""
{{
.reg .b32 a, b, s, t, u, v;
and.b32 t, $4, 0x77777777;
shr.u32 s, $4, 1;
lop3.b32 s, s, 0x44444444, 0x32103210, 0xea;
prmt.b32 a, {TABLE[0]}, {TABLE[1]}, t;
prmt.b32 b, {TABLE[2]}, {TABLE[3]}, t;
prmt.b32 u, a, b, s;
shr.u32 t, t, 16;
shr.u32 s, s, 16;
prmt.b32 a, {TABLE[0]}, {TABLE[1]}, t;
prmt.b32 b, {TABLE[2]}, {TABLE[3]}, t;
prmt.b32 v, a, b, s;
prmt.b32 $0, u, 0x64646464, 0x4240;
prmt.b32 $1, v, 0x64646464, 0x4240;
prmt.b32 $2, u, 0x64646464, 0x4341;
prmt.b32 $3, v, 0x64646464, 0x4341;
sub.f16x2 $0, $0, $5;
sub.f16x2 $1, $1, $6;
sub.f16x2 $2, $2, $5;
sub.f16x2 $3, $3, $6;
}}
""")
# Four scales of int8 to float16, and what CODES4 subtracts where they hold.
SCALES4 = tl.constexpr(f"""
{{
.reg .b32 t, c;
xor.b32 t, $4, 0x80808080;
mov.b32 c, 0x64806480;
prmt.b32 $0, t, 0x64646464, 0x5150;
prmt.b32 $1, t, 0x64646464, 0x5352;
and.b32 $2, $0, 0x00010001;
and.b32 $3, $1, 0x00010001;
mad.lo.u32 $2, $2, {2**32 - INT4_SHIFT}, c;
mad.lo.u32 $3, $3, {2**32 - INT4_SHIFT}, c;
sub.f16x2 $0, $0, c;
sub.f16x2 $1, $1, c;
}}
""")


@triton.jit
def codes8(stored, ASSEMBLY: tl.constexpr):
    """Convert int8 codes to float16."""
    if ASSEMBLY:
        codes = tl.inline_asm_elementwise(CODES8, "=r,=r,r", [stored], dtype=tl.float16, is_pure=True, pack=4)
    else:
        codes = stored.to(tl.float16)
    return codes


@triton.jit
def codes4(stored, bias, ASSEMBLY: tl.constexpr):
    """Convert int4 bytes to float16: the values of (low codes, high codes), less BIAS - `bias`, which `scales4` gives."""
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            CODES4, "=&r,=&r,=&r,=&r,r,r,r", [stored, bias], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        low = -bias + BIAS
        high = low
        for code in tl.static_range(16):
            low += tl.where((stored & 15) == code, VALUES[code], 0).to(tl.float16)
            high += tl.where((stored >> 4) == code, VALUES[code], 0).to(tl.float16)
    return low, high


@triton.jit
def scales4(stored, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Convert int4's int8 scales (ROWS, BLOCKS) to float16 for each byte of the blocks, (ROWS, BLOCKS * BLOCK / 2). With
    them the `bias` of `codes4`."""
    if ASSEMBLY:
        scale, bias = tl.inline_asm_elementwise(
            SCALES4, "=&r,=&r,=&r,=&r,r", [stored], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        scale = stored.to(tl.float16)
        bias = ((stored & 1).to(tl.int32) * -SHIFT + BIAS).to(tl.float16)
    return _of_bytes(scale, ROWS, BLOCKS, BLOCK // 2), _of_bytes(bias, ROWS, BLOCKS, BLOCK // 2)


@triton.jit
def _of_bytes(of_blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BYTES: tl.constexpr):
    wide = tl.broadcast_to(of_blocks[:, :, None], (ROWS, BLOCKS, BYTES))
    return tl.reshape(wide, (ROWS, BLOCKS * BYTES))


@triton.jit
def _dequantize_kernel(
    values_ptr, block_scales_ptr, scales_ptr, out_ptr, N, K: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows from program_id(0) * ROWS, columns from program_id(1) * COLUMNS."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = n < N
    kind = out_ptr.dtype.element_ty
    WIDTH: tl.constexpr = COLUMNS // 2 if BITS == 4 else COLUMNS
    BLOCKS: tl.constexpr = (K + BLOCK - 1) // BLOCK
    STRIDE: tl.constexpr = BLOCKS * (BLOCK // 2) if BITS == 4 else K
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wait_for_inputs(PDL)
    there = inside[:, None] & (column < STRIDE)[None, :]
    stored = tl.load(values_ptr + n.to(tl.int64)[:, None] * STRIDE + column[None, :], mask=there, other=0)
    s = tl.load(scales_ptr + n, mask=inside, other=0.0)[:, None]
    out = out_ptr + n.to(tl.int64)[:, None] * K
    if BITS == 4:
        b = tl.program_id(1) * (COLUMNS // BLOCK) + tl.arange(0, COLUMNS // BLOCK)
        c = block_scales_ptr + n.to(tl.int64)[:, None] * BLOCKS + b[None, :]
        c = tl.load(c, mask=inside[:, None] & (b < BLOCKS)[None, :], other=0)
        c, bias = scales4(c, ROWS, COLUMNS // BLOCK, BLOCK, ASSEMBLY)
        low, high = codes4(stored, bias, ASSEMBLY)
        k = column // (BLOCK // 2) * BLOCK + column % (BLOCK // 2)
        value = low.to(tl.float32) * c.to(tl.float32) * s
        tl.store(out + k[None, :], value.to(kind), mask=inside[:, None] & (k < K)[None, :])
        k += BLOCK // 2
        value = high.to(tl.float32) * c.to(tl.float32) * s
        tl.store(out + k[None, :], value.to(kind), mask=inside[:, None] & (k < K)[None, :])
    else:
        value = codes8(stored, ASSEMBLY).to(tl.float32) * s
        tl.store(out + column[None, :], value.to(kind), mask=there)


def stored_parts(weight: Int8Weight | Int4Weight) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, int]:
    """(values, scales of blocks, scales of rows, bits) of a weight for the kernels. ValueError if it is in panels.

    On the CPU, in Triton's interpreter, panels, the form for C++, are put into rows here.
    """
    if isinstance(weight, Int8Weight):
        return weight.values, None, weight.scales, 8
    if weight.in_panels and weight.values.device.type == "cpu":
        weight = in_rows(weight)
    if weight.in_panels:
        raise ValueError(f"int4 weight of shape {weight.shape} is in panels, wanted rows")
    return weight.values, weight.scales, weight.factors, 4


def dequantize(weight: Int8Weight | Int4Weight, dtype: torch.dtype) -> torch.Tensor:
    """`quantized.dequantize` on a GPU: (N, K) of `dtype`, with the same bits."""
    rows, columns = weight.shape
    values, block_scales, scales, bits = stored_parts(weight)
    device = values.device
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    check_device("values", values, device)
    for name, tensor in (("block scales", block_scales), ("scales", scales)):
        if tensor is not None:
            check(name, tensor, tuple(tensor.shape), device)
    grid = triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)
    _dequantize_kernel[grid](
        values, block_scales, scales, out, rows, K=columns, BITS=bits, BLOCK=BLOCK, ROWS=ROWS, COLUMNS=COLUMNS,
        ASSEMBLY=not interpreting(), num_warps=4, **pdl(device),
    )  # fmt: skip
    return out
