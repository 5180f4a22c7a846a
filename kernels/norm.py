"""RMSNorm on a GPU: y = x * rsqrt(mean(x^2) + eps), rounded to x's type, times the weight.

`inverse_rms` is inlined by the products that normalise their input themselves (kernels/product.py). Its sum is folded by pairs,
so a row's norm depends neither on the kernel that computes it nor on the number of warps.
"""

import torch
import triton
import triton.language as tl

from .launch import check, pdl, wait_for_inputs

NORM_WARPS = 4
LANES = 1024


@triton.jit
def inverse_rms(row_ptr, eps, H: tl.constexpr, LANES: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) in float32, for the H elements x at row_ptr."""
    lane = tl.arange(0, LANES)
    squares = tl.zeros((LANES,), dtype=tl.float32)
    for start in tl.static_range(0, H, LANES):  # unrolled, so that all loads are issued before the first is needed
        x = tl.load(row_ptr + start + lane, mask=start + lane < H, other=0.0).to(tl.float32)
        squares += x * x
    return 1 / tl.sqrt(sum_of(squares, LANES) / H + eps)


@triton.jit
def sum_of(values, COUNT: tl.constexpr):
    """Sum COUNT values (a power of two, 64 to 1024), adjacent pairs first: each step adds two, so the order is fixed."""
    if COUNT >= 1024:
        values = tl.sum(tl.reshape(values, (COUNT // 2, 2)), axis=1)
    if COUNT >= 512:
        values = tl.sum(tl.reshape(values, (256, 2)), axis=1)
    if COUNT >= 256:
        values = tl.sum(tl.reshape(values, (128, 2)), axis=1)
    if COUNT >= 128:
        values = tl.sum(tl.reshape(values, (64, 2)), axis=1)
    values = tl.sum(tl.reshape(values, (32, 2)), axis=1)
    values = tl.sum(tl.reshape(values, (16, 2)), axis=1)
    values = tl.sum(tl.reshape(values, (8, 2)), axis=1)
    values = tl.sum(tl.reshape(values, (4, 2)), axis=1)
    values = tl.sum(tl.reshape(values, (2, 2)), axis=1)
    return tl.sum(values, axis=0)


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, eps, H: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr):
    """One row."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64) * H
    scale = inverse_rms(x_ptr + row, eps, H, LANES)
    kind = out_ptr.dtype.element_ty
    for start in range(0, H, LANES):
        lane = start + tl.arange(0, LANES)
        x = tl.load(x_ptr + row + lane, mask=lane < H, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + lane, mask=lane < H, other=0.0).to(kind).to(tl.float32)
        normed = (x * scale).to(kind).to(tl.float32)
        tl.store(out_ptr + row + lane, (normed * weight).to(kind), mask=lane < H)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor | None = None, trigger: str = "early"
) -> torch.Tensor:
    """`reference.rms_norm` of x (T, H) and weight (H,), all of one dtype. `trigger`: when the next kernel may start."""
    out = torch.empty_like(x) if out is None else out
    rows, hidden = x.shape
    check("x", x, (rows, hidden), x.device)
    check("weight", weight, (hidden,), x.device)
    check("out", out, (rows, hidden), x.device)
    _rms_norm_kernel[(rows,)](
        x, weight, out, eps, H=hidden, LANES=LANES, num_warps=NORM_WARPS, **pdl(x.device, trigger)
    )
    return out
