"""Dequantisation on a GPU: of codes, inlined by the products, and of whole matrices, which cuBLAS multiplies for prompts.

int8:  w[n, k] = q[n, k] * s[n]      int4:  w[n, k] = (u[n, k] - 8) * s[n, k // GROUP]      rounded once
"""

import torch
import triton
import triton.language as tl

from .launch import check, check_device, interpreting, pdl, wait_for_inputs
from .quantized import GROUP, Int4Weight, Int8Weight

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
CODES4 = tl.constexpr("""
{
.reg .b32 a, b, c, d, e;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
lop3.b32 $0, a, 0x000f000f, 0x64006400, 0xea;
lop3.b32 $1, b, 0x000f000f, 0x64006400, 0xea;
lop3.b32 $2, a, 0x00f000f0, 0x64006400, 0xea;
lop3.b32 $3, b, 0x00f000f0, 0x64006400, 0xea;
mov.b32 c, 0x64086408;
mov.b32 d, 0x2c002c00;
mov.b32 e, 0xd480d480;
sub.f16x2 $0, $0, c;
sub.f16x2 $1, $1, c;
fma.rn.f16x2 $2, $2, d, e;
fma.rn.f16x2 $3, $3, d, e;
}
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
def codes4(stored, ASSEMBLY: tl.constexpr):
    """Convert int4 bytes to float16: (low codes - 8, high codes - 8)."""
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            CODES4, "=&r,=&r,=&r,=&r,r", [stored], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        low = (stored & 15).to(tl.float16) - 8.0
        high = (stored >> 4).to(tl.float16) - 8.0
    return low.to(tl.float16), high.to(tl.float16)


@triton.jit
def _dequantize_kernel(
    values_ptr, scales_ptr, out_ptr, N, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows from program_id(0) * ROWS, columns from program_id(1) * COLUMNS."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = n < N
    kind = out_ptr.dtype.element_ty
    WIDTH: tl.constexpr = COLUMNS // 2 if BITS == 4 else COLUMNS
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
    STRIDE: tl.constexpr = GROUPS * (GROUP // 2) if BITS == 4 else K
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wait_for_inputs(PDL)
    there = inside[:, None] & (column < STRIDE)[None, :]
    stored = tl.load(values_ptr + n.to(tl.int64)[:, None] * STRIDE + column[None, :], mask=there, other=0)
    out = out_ptr + n.to(tl.int64)[:, None] * K
    if BITS == 4:
        low, high = codes4(stored, ASSEMBLY)
        g = tl.program_id(1) * (COLUMNS // GROUP) + tl.arange(0, COLUMNS // GROUP)
        scales = scales_ptr + n.to(tl.int64)[:, None] * GROUPS + g[None, :]
        s = tl.load(scales, mask=inside[:, None] & (g < GROUPS)[None, :], other=0.0)
        s = tl.reshape(tl.broadcast_to(s[:, :, None], (ROWS, COLUMNS // GROUP, GROUP // 2)), (ROWS, WIDTH)).to(
            tl.float32
        )
        k = column // (GROUP // 2) * GROUP + column % (GROUP // 2)
        tl.store(out + k[None, :], (low.to(tl.float32) * s).to(kind), mask=inside[:, None] & (k < K)[None, :])
        k += GROUP // 2
        tl.store(out + k[None, :], (high.to(tl.float32) * s).to(kind), mask=inside[:, None] & (k < K)[None, :])
    else:
        s = tl.load(scales_ptr + n, mask=inside, other=0.0)
        value = codes8(stored, ASSEMBLY).to(tl.float32) * s[:, None]
        tl.store(out + column[None, :], value.to(kind), mask=there)


def dequantize(weight: Int8Weight | Int4Weight, dtype: torch.dtype) -> torch.Tensor:
    """`quantized.dequantize` on a GPU: (N, K) of `dtype`, with the same bits."""
    rows, columns = weight.shape
    device = weight.values.device
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    check_device("values", weight.values, device)
    check("scales", weight.scales, tuple(weight.scales.shape), device)
    bits = 8 if isinstance(weight, Int8Weight) else 4
    grid = triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)
    _dequantize_kernel[grid](
        weight.values, weight.scales, out, rows, K=columns, BITS=bits, GROUP=GROUP, ROWS=ROWS, COLUMNS=COLUMNS,
        ASSEMBLY=not interpreting(), num_warps=4, **pdl(device),
    )  # fmt: skip
    return out
