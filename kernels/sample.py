"""Sampling on a GPU without a sort and without the host, and the preparation of the next step.

    kept   the tokens that `reference.sample` keeps: logits of at least a threshold, which is found bit by bit
    token  argmax over kept of logit / temperature - log(-log(u)), u from the reference's counter hash

The search: floats of one sign have the order of their bits, so a threshold is a 32-bit integer. Each pass over the logits
finds, for some candidates, how many tokens (top_k) or what share of the probability (top_p) is at or above each, and thus fixes
some bits. Shares are summed exactly, as integers, so the order of summation does not matter.

The output product leaves the greatest of each block of logits (kernels/product.py). Greedy rows need no more. If top_k is
small, all kept tokens are in the top_k blocks whose greatest logits are the greatest: at most 2048 logits, in registers.
"""

import torch
import triton
import triton.language as tl

from . import tuned
from .launch import check, check_device, pdl, wait_for_inputs
from .settings import BEST_BLOCK, SampleSettings

BLOCK = 2048  # logits that a pass loads at a time
PICKED = 64  # largest top_k for which only so many blocks are read instead of all
EMBEDDED = 1024  # elements of a row that a program of `embed` copies


@triton.jit
def _mix(x):
    """`reference.mix` in 32-bit arithmetic."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _order(x):
    """An int32 with the same order as the float32 x."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _shares(x, top):
    """exp(x - top) as an integer multiple of 2^-34 (`reference.SHARES`); the sum of 2^19 of them fits into an int64."""
    return (tl.exp(x - top) * 17179869184.0 + 0.5).to(tl.int64)


@triton.jit
def _threshold(
    logits_ptr, temperature, floor, top, wanted, V: tl.constexpr, BLOCK: tl.constexpr, RADIX: tl.constexpr,
    DIGIT: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """The greatest order at or above which there are `wanted` tokens, or with BY_MASS `wanted` of the sum of `_shares`.

    Counts only tokens of an order of at least `floor`. RADIX is 2^DIGIT, `wanted` a float64.
    """
    low = tl.full((), -2147483648, dtype=tl.int64)
    step = tl.full((), 1 << (32 - DIGIT), dtype=tl.int64)
    place = tl.arange(0, RADIX)
    for _ in range(32 // DIGIT):
        candidates = (low + place * step).to(tl.int32)
        above = tl.zeros((RADIX,), dtype=tl.int64)
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")) / temperature
            order = _order(x)
            if BY_MASS:
                weight = _shares(x, top)
            else:
                weight = tl.full((BLOCK,), 1, dtype=tl.int32)
            weight = tl.where((v < V) & (order >= floor), weight, 0)
            above += tl.sum(tl.where(order[:, None] >= candidates[None, :], weight[:, None], 0), axis=0)
        low += tl.max(tl.where(above.to(tl.float64) >= wanted, place, 0), axis=0) * step
        step = step >> DIGIT
    return tl.maximum(low, floor.to(tl.int64)).to(tl.int32)


@triton.jit
def _kth(order, k):
    """The k-th greatest of `order`, in registers, one bit in each pass: the result of `_threshold` for k tokens."""
    low = tl.full((), -2147483648, dtype=tl.int64)
    step = tl.full((), 1 << 31, dtype=tl.int64)
    for _ in range(32):
        above = tl.sum((order >= (low + step).to(tl.int32)).to(tl.int32), axis=0)
        low += tl.where(above >= k, step, 0)
        step = step >> 1
    return low.to(tl.int32)


@triton.jit
def _by_mass(order, shares, wanted):
    """The greatest order at or above which there is `wanted` of the shares, in registers."""
    low = tl.full((), -2147483648, dtype=tl.int64)
    step = tl.full((), 1 << 31, dtype=tl.int64)
    for _ in range(32):
        above = tl.sum(tl.where(order >= (low + step).to(tl.int32), shares, 0), axis=0)
        low += tl.where(above.to(tl.float64) >= wanted, step, 0)
        step = step >> 1
    return low.to(tl.int32)


@triton.jit
def _hash(seed, index, position):
    """The part of the hash of `reference.uniform` that is the same for all tokens of a row."""
    hash = _mix((seed & 0xFFFFFFFF).to(tl.uint32) ^ 0x9E3779B9)
    hash = _mix(hash ^ ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32))
    hash = _mix(hash ^ index.to(tl.uint32))
    return _mix(hash ^ position.to(tl.uint32))


@triton.jit
def _drawn(x, v, kept, hash):
    """x plus the noise of each token v; -inf for tokens that are not kept."""
    bits = _mix(hash ^ _mix(v.to(tl.uint32) + 0x85EBCA6B))
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return tl.where(kept, x - tl.log(-tl.log(uniform)), float("-inf"))


@triton.jit
def _of_picked(
    logits_ptr, picked_ptr, many, temperature, top, top_k, top_p, least, hash, V: tl.constexpr, PICKED: tl.constexpr,
    BEST_BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw a token from `many` blocks, whose numbers are at picked_ptr."""
    place = tl.arange(0, PICKED * BEST_BLOCK)
    slot = place // BEST_BLOCK
    v = tl.load(picked_ptr + slot, mask=slot < many, other=0) * BEST_BLOCK + place % BEST_BLOCK
    there = (slot < many) & (v < V)
    x = tl.load(logits_ptr + v, mask=there, other=float("-inf")) / temperature
    order = tl.where(there, _order(x), -2147483648)
    kept = there & (order >= _kth(order, top_k))
    if top_p < 1:
        shares = tl.where(kept, _shares(x, top), 0)
        wanted = top_p.to(tl.float64) * tl.sum(shares, axis=0).to(tl.float64)
        kept = kept & (order >= _by_mass(order, shares, wanted))
    drawn = _drawn(x, v, kept & (x >= least), hash)
    return tl.min(tl.where(drawn == tl.max(drawn, axis=0), v, V), axis=0)


@triton.jit
def _of_all(
    logits_ptr, temperature, top, top_k, top_p, least, hash, V: tl.constexpr, BLOCK: tl.constexpr, RADIX: tl.constexpr,
    DIGIT: tl.constexpr,
):  # fmt: skip
    """Draw a token from all logits, which are read again in each pass."""
    floor = tl.full((), -2147483648, dtype=tl.int32)
    if top_k > 0 and top_k < V:
        wanted = top_k.to(tl.float64)
        floor = _threshold(logits_ptr, temperature, floor, top, wanted, V, BLOCK, RADIX, DIGIT, False)
    if top_p < 1:
        mass = tl.zeros((), dtype=tl.int64)
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")) / temperature
            mass += tl.sum(tl.where((v < V) & (_order(x) >= floor), _shares(x, top), 0), axis=0)
        wanted = top_p.to(tl.float64) * mass.to(tl.float64)
        floor = _threshold(logits_ptr, temperature, floor, top, wanted, V, BLOCK, RADIX, DIGIT, True)
    highest = tl.full((), float("-inf"), dtype=tl.float32)
    token = tl.full((), 0, dtype=tl.int32)
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")) / temperature
        drawn = _drawn(x, v, (v < V) & (_order(x) >= floor) & (x >= least), hash)
        here = tl.max(drawn, axis=0)
        token = tl.where(here > highest, tl.min(tl.where(drawn == here, v, V), axis=0), token)
        highest = tl.maximum(highest, here)
    return token


@triton.jit
def _sample_kernel(
    logits_ptr, best_ptr, picked_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, index_ptr, position_ptr,
    out_ptr, V: tl.constexpr, BLOCKS: tl.constexpr, PADDED_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, RADIX: tl.constexpr,
    DIGIT: tl.constexpr, PICKED: tl.constexpr, BEST_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Row program_id(0). picked: (S, PICKED) int32, scratch memory for the numbers of the blocks that are read."""
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * V
    picked_ptr += row * PICKED
    block = tl.arange(0, PADDED_BLOCKS)
    index = tl.load(best_ptr + row * BLOCKS + block, mask=block < BLOCKS, other=0)
    broken = tl.min(index, axis=0) < 0
    value = tl.load(logits_ptr + tl.maximum(index, 0), mask=block < BLOCKS, other=float("-inf"))
    top = tl.max(value, axis=0)
    token = tl.min(tl.where((value == top) & (block < BLOCKS), index, V), axis=0)
    temperature = tl.load(temperature_ptr + row)
    top = top / tl.where(temperature > 0, temperature, 1.0)
    broken = broken | (top - top != 0)
    if temperature > 0 and not broken:
        top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
        least = tl.where(min_p > 0, top + tl.log(min_p), float("-inf"))
        hash = _hash(tl.load(seed_ptr + row), tl.load(index_ptr + row), tl.load(position_ptr + row))
        many = tl.full((), PICKED + 1, dtype=tl.int32)
        if top_k > 0 and top_k <= PICKED:  # the k-th greatest logit is at least the k-th greatest of the blocks' bests
            order = tl.where(block < BLOCKS, _order(value / temperature), -2147483648)
            picked = (block < BLOCKS) & (order >= _kth(order, top_k))
            many = tl.sum(picked.to(tl.int32), axis=0)  # more than top_k if bests are equal
            place = tl.cumsum(picked.to(tl.int32), axis=0) - 1
            tl.store(picked_ptr + place, block, mask=picked & (place < PICKED))
            tl.debug_barrier()  # threads read what others stored
        if many <= PICKED:
            token = _of_picked(
                logits_ptr, picked_ptr, many, temperature, top, top_k, top_p, least, hash, V, PICKED, BEST_BLOCK
            )
        else:
            token = _of_all(logits_ptr, temperature, top, top_k, top_p, least, hash, V, BLOCK, RADIX, DIGIT)
    tl.store(out_ptr + row, tl.where(broken, -1, token).to(tl.int64))


@triton.jit
def _best_of_blocks_kernel(
    logits_ptr, best_ptr, V: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr
):
    """Row program_id(0), 64 blocks from program_id(1) * 64: `best` for logits that `product.head` did not make."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * 64 + tl.arange(0, 64)
    v = block[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    x = tl.load(logits_ptr + row * V + v, mask=v < V, other=float("-inf"))
    broken = tl.max(tl.where((v < V) & (x - x != 0), 1, 0), axis=1)
    best = tl.max(x, axis=1)
    index = tl.min(tl.where((x == best[:, None]) & (v < V), v, V), axis=1)
    tl.store(best_ptr + row * BLOCKS + block, tl.where(broken > 0, -1, index), mask=block < BLOCKS)


def sample(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor,
    seeds: torch.Tensor, sample_index: torch.Tensor, positions: torch.Tensor,
    *, out: torch.Tensor | None = None, best: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """`reference.sample`."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BEST_BLOCK)
    check("logits", logits, (rows, vocabulary), logits.device)
    if logits.dtype != torch.float32:
        raise ValueError(f"logits are {logits.dtype}, wanted torch.float32")
    for name, tensor in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p), ("min_p", min_p),
                         ("seeds", seeds), ("sample_index", sample_index), ("positions", positions)):  # fmt: skip
        check(name, tensor, (rows,), logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
    if best is None:
        best = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
        _best_of_blocks_kernel[(rows, triton.cdiv(blocks, 64))](
            logits, best, V=vocabulary, BLOCKS=blocks, BLOCK_N=BEST_BLOCK, num_warps=4, **pdl(logits.device)
        )
    check("best", best, (rows, blocks), logits.device)
    picked = torch.empty(rows, PICKED, dtype=torch.int32, device=logits.device)
    how = tuned.sample(vocabulary, rows, logits.device)
    _sample_kernel[(rows,)](
        logits, best, picked, temperature, top_k, top_p, min_p, seeds, sample_index, positions, out,
        num_warps=how.num_warps, **constants(vocabulary, how), **pdl(logits.device),
    )  # fmt: skip
    return out


def constants(vocabulary: int, how: SampleSettings) -> dict[str, int]:
    """The constexprs of the sampler, except PDL."""
    blocks = triton.cdiv(vocabulary, BEST_BLOCK)
    return {
        "V": vocabulary, "BLOCKS": blocks, "PADDED_BLOCKS": triton.next_power_of_2(blocks), "BLOCK": BLOCK,
        "RADIX": how.radix, "DIGIT": how.radix.bit_length() - 1, "PICKED": PICKED, "BEST_BLOCK": BEST_BLOCK,
    }  # fmt: skip


@triton.jit
def _embed_kernel(ids_ptr, weight_ptr, out_ptr, H: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Row program_id(0), columns from program_id(1) * BLOCK. A negative id (NO_TOKEN) reads row 0."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.maximum(tl.load(ids_ptr + row), 0)
    value = tl.load(weight_ptr + token * H + column, mask=column < H, other=0.0)
    tl.store(out_ptr + row * H + column, value.to(out_ptr.dtype.element_ty), mask=column < H)


def embed(ids: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """`reference.embed`."""
    rows, hidden = ids.shape[0], weight.shape[1]
    out = weight.new_empty(rows, hidden) if out is None else out
    check_device("ids", ids, weight.device)
    check("out", out, (rows, hidden), weight.device)
    _embed_kernel[(rows, triton.cdiv(hidden, EMBEDDED))](
        ids, weight, out, H=hidden, BLOCK=EMBEDDED, num_warps=4, **pdl(weight.device)
    )
    return out


@triton.jit
def _advance_kernel(
    tokens_ptr, ids_ptr, positions_ptr, slots_ptr, lens_ptr, left_ptr, stops_ptr, tables_ptr, table_stride,
    BLOCK: tl.constexpr, STOPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Row program_id(0): make the chosen token the next step's input, one position further, unless the row has ended."""
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    token, left = tl.load(tokens_ptr + row), tl.load(left_ptr + row)
    stop = tl.load(stops_ptr + row * STOPS + tl.arange(0, STOPS))
    left = tl.where((tl.max((stop == token).to(tl.int32), axis=0) > 0) | (token < 0), 0, tl.maximum(left - 1, 0))
    tl.store(left_ptr + row, left)
    if left > 0:
        position = tl.load(positions_ptr + row) + 1
        block = tl.load(tables_ptr + row.to(tl.int64) * table_stride + position // BLOCK)
        tl.store(ids_ptr + row, token)
        tl.store(positions_ptr + row, position)
        tl.store(slots_ptr + row, block.to(tl.int64) * BLOCK + position % BLOCK)
        tl.store(lens_ptr + row, (position + 1).to(tl.int32))


def advance(
    tokens: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, lens: torch.Tensor,
    left: torch.Tensor, stops: torch.Tensor, block_tables: torch.Tensor, block: int,
) -> None:  # fmt: skip
    """`reference.advance`."""
    rows = tokens.shape[0]
    check("stops", stops, (rows, stops.shape[1]), tokens.device)
    _advance_kernel[(rows,)](
        tokens, ids, positions, slots, lens, left, stops, block_tables, block_tables.stride(0),
        BLOCK=block, STOPS=stops.shape[1], num_warps=1, **pdl(tokens.device),
    )  # fmt: skip
