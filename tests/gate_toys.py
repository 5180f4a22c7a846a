"""A kernel for the gate's own tests, which can be made to spill and to copy narrowly."""

import triton
import triton.language as tl


@triton.jit
def copy_kernel(src, dst, count, BLOCK: tl.constexpr, HUNGRY: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    value = tl.load(src + offsets, mask=mask)
    if HUNGRY:  # every value must live until the sum of all is known
        value = value - tl.sum(value, axis=0)
    tl.store(dst + offsets, value, mask=mask)
