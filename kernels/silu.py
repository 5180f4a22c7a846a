"""silu(gate) * up of a joined product, for prompts; decode steps do it in the product's epilogue."""

import torch
import triton
import triton.language as tl

from .launch import check, pdl, wait_for_inputs

BLOCK = 1024


@triton.jit
def _silu_mul_kernel(parts_ptr, out_ptr, INNER: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Row program_id(0), columns from program_id(1) * BLOCK."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < INNER
    wait_for_inputs(PDL)
    kind = out_ptr.dtype.element_ty
    gate = tl.load(parts_ptr + t * 2 * INNER + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(parts_ptr + t * 2 * INNER + INNER + column, mask=mask, other=0.0).to(tl.float32)
    gate = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out_ptr + t * INNER + column, (gate * up).to(kind), mask=mask)


def silu_mul(parts: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`reference.silu_mul` of gate and up, joined in `parts` (T, 2 I). out: (T, I)."""
    rows, inner = out.shape
    check("parts", parts, (rows, 2 * inner), out.device)
    check("out", out, (rows, inner), out.device)
    grid = rows, triton.cdiv(inner, BLOCK)
    _silu_mul_kernel[grid](parts, out, INNER=inner, BLOCK=BLOCK, num_warps=4, **pdl(out.device))
    return out
