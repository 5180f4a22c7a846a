"""Kernels for the gate's own tests, which can be made to spill, to copy narrowly, and not to wait."""

import triton
import triton.language as tl

from baize_engine.kernels.launch import wait_for_inputs


@triton.jit
def copy_kernel(src, dst, count, BLOCK: tl.constexpr, HUNGRY: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    value = tl.load(src + offsets, mask=mask)
    if HUNGRY:  # every value must live until the sum of all is known
        value = value - tl.sum(value, axis=0)
    tl.store(dst + offsets, value, mask=mask)


@triton.jit
def waiting_kernel(src, dst, BLOCK: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EARLY:
        value = tl.load(src + offsets)
        wait_for_inputs(PDL)
    else:
        wait_for_inputs(PDL)
        value = tl.load(src + offsets)
    tl.store(dst + offsets, value)
