"""Predicted times of a decode step's kernels on a card: a sentence and a falsifiable formula for each.

The time of a kernel is that of its body, the longest of three: the memory's (its bytes at the rate that the bytes under way
allow), the L2 cache's (what its programs read from it), and arithmetic's (its loop's instructions, by the warps that share a
scheduler). To it comes latency, what a launch, a norm, the first loads and the end cost while nothing streams, and the tail,
where programs do not fill a whole number of waves. Bytes fetched during latency are taken off the body. Launches are those of
kernels/settings.py, code is that of compiled.json. Knows kernels, but no model and no step.
"""

from __future__ import annotations

from dataclasses import dataclass

import compiled
from card_model import SCHEDULERS, Estimate, Machine, waves
from compiled import Loop

from baize_engine.kernels.settings import AttentionSettings, ProductSettings, SampleSettings
from baize_engine.model.cost import INT4_BLOCK, matrix_bytes

VALUE = 2  # bytes of an activation, and of a cached value
KINDS = {16: "float16", 8: "int8", 4: "int4"}
FOLDS = 10  # steps of a norm's sum over 1024 lanes


@dataclass(frozen=True)
class Before:
    """The kernel before a product. It lets the product's programs start and fetch weights, which then wait for its end."""

    trigger: str = "late"
    left: float = 0.0  # bytes that it still reads when an "early" product's first programs come
    room: float = 1.0  # share of the card's places that its last wave leaves to them
    quiet_us: float = 0.0  # how long it leaves the memory idle before its end


def before(kernel: Estimate, trigger: str) -> Before:
    """A product as the kernel before another one."""
    last = kernel.last_wave
    return Before(trigger, kernel.read * last / kernel.programs, 1 - last / kernel.slots, kernel.ending)


def norm_us(m: Machine, loop: Loop) -> float:
    """A row normed within a product: loads from L2 that come together, the loop's instructions, and the steps of the sum."""
    return m.constants.l2_us + m.alone_us(loop.instructions, loop.barriers) + FOLDS * m.constants.fold_cycles / m.cycles


def norm_kernel_us(m: Machine, columns: int) -> float:
    """The kernel that norms rows, a program each: the same, and once more through the row to write it."""
    code = compiled.code("rms_norm fp16 5120", m.card.capability)
    again = sum(loop.instructions for loop in code.loops) * -(-columns // compiled.constant("LANES"))
    return 2 * m.constants.l2_us + m.alone_us(code.straight + again, 3) + FOLDS * m.constants.fold_cycles / m.cycles


def product(
    m: Machine, how: ProductSettings, bits: int, rows: int, shape: tuple[int, int], norm: bool, prior: Before
) -> Estimate:
    """`rows` rows of x times a matrix (N, K), `norm` in front of it in its own programs or, by `how`, in a kernel."""
    c, (n, k) = m.constants, shape
    fused = norm and how.fuse_norm
    code = compiled.code(compiled.product_name(how, bits, rows, fused), m.card.capability)
    held = how.block_t(rows)
    per_tile = -(-rows // held)  # programs that share a tile of W
    programs = per_tile * -(-n // how.block_n)
    slots = m.resident(code, how.num_warps) * m.card.sms
    first = min(programs, slots)
    tiles = -(-k // how.block_k)
    tile = how.block_n * (how.block_k * bits / 8 + (how.block_k / INT4_BLOCK if bits == 4 else 0))
    weights = matrix_bytes(n, k, KINDS[bits]) + (k * VALUE if norm else 0)

    # the launch, half of the code outside of loops (the other half comes before the wait), norms, the first tile, the end
    norms = min(rows, held) * norm_us(m, next(loop for loop in code.loops if not loop.tensor)) if fused else 0.0
    apart = norm_kernel_us(m, k) if norm and not fused else 0.0
    straight = m.alone_us(code.straight) * (0.5 if m.dependent else 1.0)
    ahead = min(how.prefetched, tiles) * tile if m.dependent or fused else 0.0
    arrives = c.l2_us if ahead else c.memory_us
    latency = m.start_us * (2 if apart else 1) + apart + norms + straight + arrives + c.drain_us

    # what the first programs fetch ahead: in time that is latency anyway, or too early, while the kernel before still streams
    early, idle = 0.0, norms
    if m.dependent:
        idle += max(0.0, m.start_us + (apart or prior.quiet_us) - c.arrive_us)
        if prior.trigger == "early" and not apart:
            early = min(programs, int(slots * prior.room)) * ahead
    wasted = early * (1 - m.kept(early, prior.left))
    saved = min(first * ahead - early, m.bandwidth * idle, float(weights))

    under_way = max(1, how.num_stages - 2) * tile  # a stage is in use, and there is a buffer less than stages
    every = _by_memory(m, programs, slots, weights / programs, under_way)
    still = 1 + (wasted - saved) / weights
    even = weights / m.rate(first, under_way)
    l2 = weights * per_tile + programs * min(rows, held) * k * VALUE * (2 if fused else 1)
    by_l2 = l2 / (min(programs, m.card.sms) * m.l2_rate)
    chained = how.block_k // 16  # tensor instructions of a tile that add to the same sums

    def turn(there: int) -> float:
        """A wave of `there` programs through K, by the multiprocessor that has the most of them."""
        return tiles * m.loop_us(code.products, how.num_warps, -(-there // m.card.sms), chained)

    turns = sum(turn(wave) for wave in waves(programs, slots))
    spread = max(turn(1), programs / (m.card.sms * -(-first // m.card.sms)) * turn(first))
    body, limit, tail = max(
        (every * still, "bandwidth", (every - even) * still), (by_l2, "L2", 0.0), (turns, "arithmetic", turns - spread)
    )
    tail = _positive(tail)
    ending = m.alone_us(code.straight) / 2
    return Estimate(body - tail, limit, latency, tail, weights + wasted, programs, slots, ending)


def _by_memory(m: Machine, programs: int, slots: int, each: float, under_way: float) -> float:
    """The time of waves of programs that read `each` so many bytes and have so many under way."""
    return sum(wave * each / m.rate(wave, under_way) for wave in waves(programs, slots))


def _positive(tail: float) -> float:
    """Without what rounding leaves of none."""
    return tail if tail > 1e-6 else 0.0


def attention(
    m: Machine, how: AttentionSettings, batch: int, context: int, heads: tuple[int, int], dim: int, prior: Before
) -> tuple[Estimate, Estimate]:
    """One query a sequence, a program a split and key head; and the join of the splits, whose read is nothing.

    Its chain: length and table come together, then keys and values, all of a split at once; then the code, once through.
    """
    c, (query_heads, kv_heads) = m.constants, heads
    code = compiled.code(compiled.name_of("attention", how), m.card.capability)
    split = compiled.constant("SPLIT")
    splits = -(-context // split)
    programs = batch * kv_heads * splits
    slots = m.resident(code, how.num_warps) * m.card.sms
    cached = 2.0 * batch * context * kv_heads * dim * VALUE
    latency = m.start_us + 2 * c.memory_us + m.alone_us(code.instructions) + c.drain_us
    still, wasted = 1.0, 0.0
    if how.fetch_first and m.dependent:
        late = prior.trigger == "late"
        kept = 1.0 if late else m.kept(cached, prior.left)
        wasted = cached * (1 - kept)
        if kept == 1.0:
            latency -= 2 * (c.memory_us - c.l2_us)
            idle = max(0.0, m.start_us + prior.quiet_us - c.arrive_us)
            still = 1 - min(1.0, m.bandwidth * idle / cached) if late else 0.0
    under_way = 2.0 * min(split, context) * dim * VALUE
    every = _by_memory(m, programs, slots, cached / programs, under_way)
    if whole := context // split:  # a part of a split more takes no time off the whole ones
        of_whole = batch * kv_heads * whole
        every = max(every, _by_memory(m, of_whole, slots, cached * whole * split / context / of_whole, under_way))
    even = cached / m.rate(min(programs, slots), under_way)
    by_memory = every * still + wasted / m.bandwidth
    issue = c.issue * SCHEDULERS * min(programs, m.card.sms) * m.cycles
    issued = programs * how.num_warps * code.instructions / issue
    body, limit, tail = max((by_memory, "bandwidth", (every - even) * still), (issued, "arithmetic", 0.0))
    tail = _positive(tail)
    made = Estimate(body - tail, limit, latency, tail, cached + wasted, programs, slots)

    code = compiled.code("join", m.card.capability)
    rounds = -(-splits // compiled.constant("JOINED"))
    joins = batch * query_heads
    turns = -(-joins // (m.resident(code, 4) * m.card.sms))
    loop = sum(loop.instructions for loop in code.loops)
    joining = rounds * (c.l2_us + m.alone_us(loop)) + m.alone_us(code.straight)
    latency = m.start_us + c.l2_us + turns * joining + c.drain_us
    return made, Estimate(0.0, "L2", latency, 0.0, 0.0, joins, turns * joins)


def sample(m: Machine, how: SampleSettings, batch: int, vocabulary: int, drawn: bool) -> Estimate:
    """A program a row: the best of each block of logits; where rows are drawn with a small top_k and top_p, three searches of
    32 passes over logits in registers: two for top_k, one for top_p.

    The code's last four loops, over all logits, are for other rows. A search that the compiler unrolled is taken for one that
    it did not.
    """
    c = m.constants
    code = compiled.code(compiled.name_of("sample", how), m.card.capability)
    turns = -(-batch // m.card.sms)  # programs that share a multiprocessor are taken to wait for each other
    latency = m.start_us + 2 * c.l2_us + m.alone_us(code.straight / 2) + c.drain_us
    if not drawn:
        return Estimate(0.0, "L2", latency, 0.0, 0.0, batch, m.card.sms)
    searches = code.loops[:-4]
    if not 1 <= len(searches) <= 3:
        raise ValueError(f"{compiled.name_of('sample', how)} has {len(code.loops)} loops, wanted 5 to 7")
    searches = (*(3 - len(searches)) * searches[:1], *searches)
    passing = sum(32 * m.loop_us(loop, how.num_warps, 1) for loop in searches)
    return Estimate(turns * (passing + 2 * c.l2_us), "arithmetic", latency, 0.0, 0.0, batch, m.card.sms)


def chain(m: Machine, name: str, loads: int, programs: int) -> Estimate:
    """A kernel of nothing but loads from memory that wait for each other, and its code."""
    code = compiled.code(name, m.card.capability)
    latency = m.start_us + loads * m.constants.memory_us + m.alone_us(code.instructions) + m.constants.drain_us
    return Estimate(0.0, "L2", latency, 0.0, 0.0, programs, m.card.sms)
