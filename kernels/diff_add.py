"""diff_add on a GPU: out = round(float32(base) + float32(diff)) in one pass, with the sums and counts of each chunk.

    v = base + diff in float32;  out = v, rounded once to nearest even;  lanes[l] += float64(v[1024 k + l]), k = 0..63

A program handles one chunk of 65536 elements in rows of 1024: with 4 warps that is 8 elements a thread, 16 bytes of a 16-bit
type. A chunk is thus summed in the order that `reference.diff_add` defines, without atomics. 16-bit values are passed as
int16: bfloat16 is widened and rounded in integer arithmetic (the interpreter's own is wrong), and the NaN of cvt.rn.f16.f32
(0x7fff) is replaced by the canonical one.
"""

import torch
import triton
import triton.language as tl

from .launch import check_device
from .reference import CHUNK, LANES, DiffStats

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
CODES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


@triton.jit
def _widen(stored, CODE: tl.constexpr):
    """Widen a loaded row to float32; bfloat16 is passed as int16."""
    if CODE == 2:
        return (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


# Triton compiles a kernel of its own for an integer that is 1 or a multiple of 16, and for a pointer that is such a multiple.
# Pieces of a recovery have any size and place, and a kernel takes a second to compile.
@triton.jit(
    do_not_specialize=["first_chunk", "count"],
    do_not_specialize_on_alignment=["sums_ptr", "overflowed_ptr", "nonfinite_ptr"],
)
def _diff_add_kernel(
    base_ptr, diff_ptr, out_ptr, sums_ptr, overflowed_ptr, nonfinite_ptr, first_chunk, count,
    BASE: tl.constexpr, DIFF: tl.constexpr, OUT: tl.constexpr, SUBTRACT: tl.constexpr, MASKED: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Chunk first_chunk + program_id. MASKED: it is the last one, with only `count` elements."""
    chunk = first_chunk + tl.program_id(0)
    lane = tl.arange(0, LANES)
    start = chunk.to(tl.int64) * CHUNK
    lanes = tl.zeros((LANES,), dtype=tl.float64)
    counts = tl.zeros((LANES,), dtype=tl.int32)  # upper 16 bits: nonfinite; lower: overflowed; at most 64 each
    for row in range(CHUNK // LANES):
        offsets = start + row * LANES + lane
        if MASKED:
            mask = row * LANES + lane < count
            base = _widen(tl.load(base_ptr + offsets, mask=mask, other=0), BASE)
            diff = _widen(tl.load(diff_ptr + offsets, mask=mask, other=0), DIFF)
        else:
            base = _widen(tl.load(base_ptr + offsets), BASE)
            diff = _widen(tl.load(diff_ptr + offsets), DIFF)
        if SUBTRACT:
            value = diff - base
        else:
            value = diff + base
        bits = value.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        nan = magnitude > 0x7F800000
        bits = tl.where(nan, 0x7FC00000, bits)
        value = bits.to(tl.float32, bitcast=True)
        if OUT == 1:
            half = value.to(tl.float16).to(tl.int16, bitcast=True)
            stored = tl.where(nan, 0x7E00, half.to(tl.int32)).to(tl.int16)
            limit = 0x477FF000  # 65520, the smallest value that rounds to infinity
        elif OUT == 2:
            stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
            limit = 0x7F7F8000  # the tie above the largest bfloat16
        else:
            stored = value
            limit = 0x7F800000
        if MASKED:  # masked elements are 0 + 0: they change no lane (none is ever -0.0) and no count
            tl.store(out_ptr + offsets, stored, mask=mask)
        else:
            tl.store(out_ptr + offsets, stored)
        lanes += value.to(tl.float64)
        counts += tl.where(magnitude >= 0x7F800000, 0x10000, (magnitude >= limit).to(tl.int32))
    # Fold by halves: each reduction below adds just two elements, i and i + w, so its order cannot matter.
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 2)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 4)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 8)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 16)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 32)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 64)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 128)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 256)), axis=0)
    lanes = tl.sum(tl.reshape(lanes, (2, LANES // 512)), axis=0)
    tl.store(sums_ptr + chunk, tl.sum(lanes, axis=0))
    tl.store(overflowed_ptr + chunk, tl.sum(counts & 0xFFFF, axis=0))
    tl.store(nonfinite_ptr + chunk, tl.sum(counts >> 16, axis=0))


def diff_add(base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor, *, subtract: bool = False) -> DiffStats:
    """Compute out = base + diff, or diff - base; wait for it and return its stats. Arguments as for `launch`."""
    chunks = triton.cdiv(out.numel(), CHUNK)
    sums = torch.empty(chunks, dtype=torch.float64, device=out.device)
    counts = torch.empty(2, chunks, dtype=torch.int32, device=out.device)
    launch(base, diff, out, sums, counts, subtract=subtract)
    overflowed, nonfinite = counts.long().sum(1).tolist()
    return DiffStats(sums, overflowed, nonfinite)


def compile_for(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype], device: torch.device, *, subtract: bool = False
) -> None:
    """Compile what `launch` needs for these types of (base, diff, out), unless it is compiled; wait for the GPU."""
    count = CHUNK + 1  # a whole chunk and a partial one
    left, right, target = (torch.zeros(count, dtype=dtype, device=device) for dtype in dtypes)
    diff_add(left, right, target, subtract=subtract)


def launch(
    base: torch.Tensor,
    diff: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    counts: torch.Tensor,
    *,
    subtract: bool = False,
) -> None:
    """Start out = base + diff, or diff - base, on the current stream, without waiting. Same bits as `reference.diff_add`.

    base, diff, out: (n,) contiguous, on one GPU, each float32, float16 or bfloat16; `out` does not overlap the inputs.
    sums: (chunks,) float64, receives the sum of each chunk of 65536 elements before rounding.
    counts: (2, chunks) int32, receives the numbers of overflowed and of nonfinite values of each chunk.
    Raises ValueError naming the argument.
    """
    for name, tensor in (("base", base), ("diff", diff), ("out", out)):
        check_device(name, tensor, base.device)
        if tensor.dtype not in CODES:
            raise ValueError(f"{name} is {tensor.dtype}, wanted float32, float16 or bfloat16")
        if tensor.dim() != 1 or not tensor.is_contiguous() or tensor.numel() != out.numel():
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted contiguous ({out.numel()},)")
    codes = {"BASE": CODES[base.dtype], "DIFF": CODES[diff.dtype], "OUT": CODES[out.dtype]}
    pointers = _stored(base, False), _stored(diff, False), _stored(out, True)
    whole, rest = divmod(out.numel(), CHUNK)
    for first, programs, masked in ((0, whole, False), (whole, min(rest, 1), True)):
        if programs:
            _diff_add_kernel[(programs,)](
                *pointers, sums, counts[0], counts[1], first, rest, **codes,
                SUBTRACT=subtract, MASKED=masked, CHUNK=CHUNK, LANES=LANES, num_warps=4,
            )  # fmt: skip


def _stored(tensor: torch.Tensor, is_output: bool) -> torch.Tensor:
    """View as int16 what the kernel handles as bits: 16-bit outputs, and bfloat16 inputs."""
    as_bits = tensor.dtype == torch.bfloat16 or (is_output and tensor.dtype == torch.float16)
    return tensor.view(torch.int16) if as_bits else tensor
