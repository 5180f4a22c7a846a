"""Sums of a product's segments on a GPU: added in a fixed tree, whoever computed them, and then to the residual.

Both ops are one kernel. The sums of one device are the tree's lower levels, those of all devices its upper ones, so the result
is the same as that of one device that has them all. Which segments there are is product.py's and the caller's affair.
"""

import torch
import triton
import triton.language as tl

from .launch import check, pdl, wait_for_inputs

BLOCK = 1024
MOST = 8  # sums that the kernel can add


@triton.jit
def _pair(sums_ptr, at, mask, stride):
    return tl.load(sums_ptr + at, mask=mask, other=0.0) + tl.load(sums_ptr + at + stride, mask=mask, other=0.0)


@triton.jit
def _four(sums_ptr, at, mask, stride):
    return _pair(sums_ptr, at, mask, stride) + _pair(sums_ptr, at + 2 * stride, mask, stride)


@triton.jit(do_not_specialize=["T"])
def _tree_kernel(
    sums_ptr, out_ptr, T, N: tl.constexpr, PARTS: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Elements of `out` from program_id(0) * BLOCK; with ADD they are added to what is there."""
    stride = T.to(tl.int64) * N
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < stride
    wait_for_inputs(PDL)
    if PARTS == 1:
        total = tl.load(sums_ptr + at, mask=mask, other=0.0)
    elif PARTS == 2:
        total = _pair(sums_ptr, at, mask, stride)
    elif PARTS == 4:
        total = _four(sums_ptr, at, mask, stride)
    else:
        total = _four(sums_ptr, at, mask, stride) + _four(sums_ptr, at + 4 * stride, mask, stride)
    if ADD:
        total = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32) + total
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def _launch(sums: torch.Tensor, out: torch.Tensor, add: bool) -> torch.Tensor:
    parts, (rows, count) = sums.shape[0], out.shape
    if parts not in (1, 2, 4, MOST):
        raise ValueError(f"sums are {parts}, wanted 1, 2, 4 or {MOST}")
    check("sums", sums, (parts, rows, count), out.device)
    check("out", out, (rows, count), out.device)
    grid = (triton.cdiv(rows * count, BLOCK),)
    _tree_kernel[grid](sums, out, rows, N=count, PARTS=parts, ADD=add, BLOCK=BLOCK, num_warps=4, **pdl(out.device))
    return out


def tree(sums: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`reference.tree` of sums (R, T, N) float32, R up to 8. out: (T, N) float32."""
    return _launch(sums, out, add=False)


def add_sums(sums: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`reference.add_sums`, R up to 8."""
    return _launch(sums, out, add=True)
