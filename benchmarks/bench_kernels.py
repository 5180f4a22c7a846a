"""Every Triton kernel by itself on a GPU: microseconds, and the share of what this device can do.

The ceiling of an op is the larger of its bytes over the bandwidth and its operations over the matrix peak, both measured in
this run (benchmarks/gpu.py); bytes and operations are a lower bound (baize_engine/model/cost.py). torch does the same work
for comparison: cuBLAS, scaled_dot_product_attention on contiguous keys, and for int8 and int4, which it has not, float16.
Both are checked against kernels/reference.py before they are timed. Weights and cache rotate through copies that the L2
cannot hold; activations come from it, as in a decode step, so that ops of them alone may pass 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from common import Spread, parser, report
from gpu import ceilings, gpu_spread
from shapes import PRESETS
from torch import Tensor

from baize_engine.kernels import attention, diff_add, norm, product, quantized, reference, rope, sample, silu
from baize_engine.kernels.launch import interpreting
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.rope import tables

TOUCHED, MOST = 512 << 20, 128  # bytes that the copies of an op's data have together, where as many as MOST reach that
BLOCK, STOPS, PROMPT = 16, 8, 2048  # tokens of a cache block, stop ids of a row, tokens of a prompt
HALF = 1e-2  # greatest difference over greatest value: a few roundings to float16, of 5e-4 each
DRAWN = 0.05  # share of drawn ids that may differ: two of 32000 may be as close as the roundings of a logarithm
KINDS = ("float16", "int8", "int4")
Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One op at one size. `mine` and `theirs`: its calls, one for each copy of its data; `wanted`: the right results."""

    op: str
    kind: str
    rows: int
    context: int
    mine: list[Call]
    theirs: list[Call]
    wanted: Call
    bound: float = HALF


def work(config: ModelConfig, kind: str, rows: int, context: int, prompt: bool) -> dict[str, tuple[int, int]]:
    """Operations and bytes of one call of each op; `rows` tokens of as many sequences, or of one prompt."""
    costs = cost.prefill(config, rows, kind) if prompt else cost.decode_step(config, kind, rows, context or 1)
    calls = {"embed": 1, "head": 1, "sample": 1}
    found = {
        c.name: (c.flops // calls.get(c.name, config.num_layers), c.bytes // calls.get(c.name, config.num_layers))
        for c in costs
    }
    hidden, inner = config.hidden_size, config.intermediate_size
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return {
        **found,
        "attention prefill": found["attention"],
        "sample greedy": (0, rows * (8 * -(-config.vocab_size // reference.BEST_BLOCK) + 8)),  # an id and its logit
        "sample greedy alone": found["sample"],
        "sample top_k top_p": found["sample"],
        "rms_norm": (0, (2 * rows + 1) * hidden * 2),
        "rope_and_store prefill": (0, rows * (2 * width * 2 + config.head_dim * 4 + 16)),
        "silu_mul prefill": (0, rows * 3 * inner * 2),
        "advance": (0, rows * (8 + 4 + 8 * STOPS + 8 + 4 + 4 + 8 + 8 + 8 + 4)),
        "diff_add": (0, hidden * inner * (2 + 4 + 2)),
    }


def half(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float16) * scale


def gains(size: int) -> Tensor:
    return 1 + half(size, scale=0.1)


def copies(nbytes: int) -> int:
    """Copies of an op's data to rotate through; one for the interpreter, which is not timed in earnest."""
    return 1 if interpreting() else min(MOST, max(1, ceil(TOUCHED / nbytes)))


def rotation(weight: quantized.Weight) -> list[quantized.Weight]:
    return [weight, *(quantized.join([weight]) for _ in range(copies(weight.nbytes) - 1))]


def products(config: ModelConfig, kind: str, batches: Sequence[int]) -> Iterator[Case]:
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    gain, (cos, sin) = gains(hidden), tables(config, config.max_position_embeddings, str(torch.get_default_device()))

    def qkv(weights: list[Any], wide: list[Any], rows: int) -> tuple[list[Call], list[Call], Call]:
        x, slots = half(rows, hidden), torch.randperm(rows * BLOCK)[:rows]
        positions = torch.randint(config.max_position_embeddings, (rows,))

        def state() -> list[Tensor]:
            return [torch.zeros(rows, heads, dim).half(), *torch.zeros(2, rows, BLOCK, kv, dim).half()]

        def fused(run: Any, out: list[Tensor], weight: Any) -> list[Tensor]:
            run(x, gain, eps, [weight], cos, sin, positions, out[1], out[2], slots, q=out[0])
            return out

        def plain(out: list[Tensor], weight: Tensor) -> list[Tensor]:
            parts = F.linear(F.rms_norm(x, (hidden,), gain, eps), weight).unflatten(1, (-1, dim))
            q, k, v = parts.split([heads, kv, kv], 1)
            reference.rope_and_store(q, k, v, cos, sin, positions, *out[1:], slots)
            return [q, *out[1:]]

        mine, theirs = state(), state()
        right = partial(fused, reference.qkv_rope_store, state(), weights[0])
        return [partial(fused, product.qkv_rope_store, mine, w) for w in weights], \
            [partial(plain, theirs, w) for w in wide], right  # fmt: skip

    def add(weights: list[Any], wide: list[Any], rows: int) -> tuple[list[Call], list[Call], Call]:
        x, before = (
            half(rows, weights[0].shape[1], scale=0.25),
            half(rows, hidden, scale=0.3),
        )  # stays finite over a run
        mine, theirs = before.clone(), before.clone()
        return [lambda w=w: [product.linear_add(x, w, out=mine)] for w in weights], \
            [lambda w=w: [theirs.addmm_(x, w.t())] for w in wide], \
            lambda: [reference.linear_add(x, weights[0], out=before)]  # fmt: skip

    def swiglu(weights: list[Any], wide: list[Any], rows: int) -> tuple[list[Call], list[Call], Call]:
        x, out = half(rows, hidden), torch.empty(rows, inner, dtype=torch.float16)

        def plain(weight: Tensor) -> list[Tensor]:
            gate, up = F.linear(F.rms_norm(x, (hidden,), gain, eps), weight).chunk(2, 1)
            return [F.silu(gate) * up]

        return [lambda w=w: [product.gate_up(x, gain, eps, [w], out=out)] for w in weights], \
            [partial(plain, w) for w in wide], \
            lambda: [reference.gate_up(x, gain, eps, weights[:1], out=torch.empty_like(out))]  # fmt: skip

    def logits(weights: list[Any], wide: list[Any], rows: int) -> tuple[list[Call], list[Call], Call]:
        x, out = half(rows, hidden), torch.empty(rows, config.vocab_size)
        best = torch.empty(rows, -(-config.vocab_size // reference.BEST_BLOCK), dtype=torch.int32)
        return [lambda w=w: [product.head(x, gain, eps, w, out=out, best=best)] for w in weights], \
            [lambda w=w: [F.linear(F.rms_norm(x, (hidden,), gain, eps), w).float()] for w in wide], \
            lambda: [reference.head(x, gain, eps, weights[0], out=torch.empty_like(out))]  # fmt: skip

    for op, shape, made in (
        ("qkv_rope_store", ((heads + 2 * kv) * dim, hidden), qkv), ("linear_add o", (hidden, heads * dim), add),
        ("gate_up", (2 * inner, hidden), swiglu), ("linear_add down", (hidden, inner), add),
        ("head", (config.vocab_size, hidden), logits),
    ):  # fmt: skip
        drawn = half(*shape, scale=shape[1] ** -0.5)
        weights = rotation(drawn if kind == "float16" else quantized.quantize(drawn, kind))
        wide = weights if kind == "float16" else rotation(quantized.dequantize(weights[0], torch.float16))
        for rows in batches:
            yield Case(op, kind, rows, 0, *made(weights, wide, rows))


def attending(config: ModelConfig, op: str, batch: int, queries: int, context: int) -> Case:
    """`queries` tokens of each of `batch` sequences attend to its `context`, themselves the last of it."""
    heads, kv, dim, scale = config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5
    blocks = -(-context // BLOCK)
    shape = (batch * blocks, BLOCK, kv, dim)
    caches = [(half(*shape), half(*shape)) for _ in range(copies(4 * batch * blocks * BLOCK * kv * dim))]
    places = torch.randperm(batch * blocks).view(batch, blocks)
    table, starts = places.int(), torch.arange(batch + 1, dtype=torch.int32) * queries
    q, lens = half(batch * queries, heads, dim), torch.full((batch,), context, dtype=torch.int32)
    whole = [
        [part[places].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for part in cache] for cache in caches
    ]
    out, longest = torch.empty_like(q), context if queries == 1 else queries

    def mine(k: Tensor, v: Tensor) -> list[Tensor]:
        return [attention.attention(q, k, v, table, starts, lens, scale, out=out, longest=longest)]

    def theirs(k: Tensor, v: Tensor) -> list[Tensor]:
        rows = q.view(batch, queries, heads, dim).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(rows, k, v, is_causal=queries > 1, scale=scale, enable_gqa=heads != kv)
        return [mixed.transpose(1, 2).reshape(q.shape)]

    right = partial(reference.attention, q, *caches[0], table, starts, lens, scale)
    return Case(op, "float16", batch * queries, context, [partial(mine, *cache) for cache in caches],
                [partial(theirs, *cache) for cache in whole], lambda: [right()])  # fmt: skip


def choosing(config: ModelConfig, rows: int) -> Iterator[Case]:
    """The ops of a step around its layers; a norm too, which the products do themselves for up to 8 rows."""
    hidden, vocab, eps = config.hidden_size, config.vocab_size, config.rms_norm_eps
    many = copies(rows * hidden * 2)
    xs, gain = [half(rows, hidden) for _ in range(many)], gains(hidden)
    yield Case("rms_norm", "float16", rows, 0, [lambda x=x: [norm.rms_norm(x, gain, eps)] for x in xs],
               [lambda x=x: [F.rms_norm(x, (hidden,), gain, eps)] for x in xs],
               lambda: [reference.rms_norm(xs[0], gain, eps)])  # fmt: skip
    weight, ids = half(vocab, hidden), [torch.randint(vocab, (rows,)) for _ in range(many)]
    yield Case("embed", "float16", rows, 0, [lambda i=i: [sample.embed(i, weight)] for i in ids],
               [lambda i=i: [F.embedding(i, weight)] for i in ids],
               lambda: [reference.embed(ids[0], weight)], bound=0.0)  # fmt: skip
    logits = torch.randn(rows, vocab) * 3
    padded = F.pad(logits, (0, -vocab % reference.BEST_BLOCK), value=float("-inf")).unflatten(
        1, (-1, reference.BEST_BLOCK)
    )
    best = (padded.argmax(2) + torch.arange(padded.shape[1]) * reference.BEST_BLOCK).int()
    keys = torch.arange(rows) * 77_777_777_777, torch.zeros(rows, dtype=torch.int64), torch.arange(rows)
    for op, given, values in (("sample greedy", best, (0.0, 0, 1.0)), ("sample greedy alone", None, (0.0, 0, 1.0)),
                              ("sample top_k top_p", best, (0.8, 40, 0.9))):  # fmt: skip
        warm, top_k, top_p, min_p = (torch.full((rows,), value) for value in (*values, 0.0))
        yield Case(op, "float32", rows, 0,
                   [lambda w=warm, k=top_k, p=top_p, m=min_p, b=given: [sample.sample(logits, w, k, p, m, *keys, best=b)]],
                   [partial(drawn, logits, warm, top_k, top_p, min_p, keys) if values[0] else lambda: [logits.argmax(-1)]],
                   lambda w=warm, k=top_k, p=top_p, m=min_p: [reference.sample(logits, w, k, p, m, *keys)],
                   bound=DRAWN if values[0] else 0.0)  # fmt: skip
    wide = 1 << 40  # tokens of a block, so that no run of steps leaves the first

    def state() -> list[Tensor]:
        return [torch.full((rows,), 9), torch.arange(rows), torch.arange(rows), torch.arange(rows).int(),
                torch.full((rows,), 1 << 30, dtype=torch.int32)]  # fmt: skip

    def step(run: Any, out: list[Tensor]) -> list[Tensor]:
        run(tokens, *out, stops, table, wide)
        return out

    tokens, stops = torch.randint(vocab, (rows,)), torch.full((rows, STOPS), -7)
    table = torch.zeros(rows, 1, dtype=torch.int32)
    yield Case("advance", "int64", rows, 0, [partial(step, sample.advance, state())],
               [partial(step, reference.advance, state())], partial(step, reference.advance, state()), bound=0.0)  # fmt: skip


def drawn(logits: Tensor, warm: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Any) -> list[Tensor]:
    """`reference.sample` of rows that are all drawn, which need not ask the device whether they are."""
    scaled = logits / warm[:, None]
    noise = -torch.log(-torch.log(reference.uniform(*keys, logits.shape[1])))
    kept = reference._filter(scaled, top_k, top_p, min_p)
    return [torch.where(kept, scaled + noise, float("-inf")).argmax(-1)]


def long(config: ModelConfig, tokens: int) -> Iterator[Case]:
    """A prompt's own kernels, and diff_add of a matrix of the MLP."""
    yield attending(config, "attention prefill", 1, tokens, tokens)
    heads, kv, dim, inner = config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
    cos, sin = tables(config, tokens, str(torch.get_default_device()))
    parts, places = half(tokens, (heads + 2 * kv) * dim), torch.randperm(tokens)
    mine, theirs, right = (
        [torch.zeros(tokens, heads, dim).half(), *torch.zeros(2, -(-tokens // BLOCK), BLOCK, kv, dim).half()]
        for _ in range(3)
    )

    def ours() -> list[Tensor]:
        rope.rope_and_store(parts, cos, sin, places, mine[1], mine[2], places, q=mine[0])
        return mine

    def plain(out: list[Tensor]) -> list[Tensor]:
        q, k, v = parts.unflatten(1, (-1, dim)).split([heads, kv, kv], 1)
        out[0].copy_(q)
        reference.rope_and_store(out[0], k, v, cos, sin, places, out[1], out[2], places)
        return out

    yield Case("rope_and_store prefill", "float16", tokens, 0, [ours], [partial(plain, theirs)], partial(plain, right))
    joined, out = half(tokens, 2 * inner), torch.empty(tokens, inner, dtype=torch.float16)
    gate, up = joined.chunk(2, 1)
    yield Case("silu_mul prefill", "float16", tokens, 0, [lambda: [silu.silu_mul(joined, out=out)]],
               [lambda: [F.silu(gate) * up]], lambda: [reference.silu_mul(gate, up)])  # fmt: skip
    size = config.hidden_size * inner
    base, diff, chunks = half(size, scale=0.02), torch.randn(size) * 0.002, -(-size // reference.CHUNK)
    added, total = torch.empty_like(base), torch.empty_like(base)
    sums, counts = torch.empty(chunks, dtype=torch.float64), torch.empty(2, chunks, dtype=torch.int32)

    def adding() -> list[Tensor]:
        diff_add.launch(base, diff, added, sums, counts)
        return [added, sums]

    def exact() -> list[Tensor]:
        result, stats = reference.diff_add(base, diff, torch.float16)
        return [result, stats.chunk_sums]

    yield Case("diff_add", "float16+float32", config.hidden_size, 0, [adding],
               [lambda: [torch.add(diff, base, out=total)]], exact, bound=0.0)  # fmt: skip


def cases(config: ModelConfig, options: argparse.Namespace) -> Iterator[Case]:
    for kind in options.kinds:
        yield from products(config, kind, options.rows)
    for rows in options.rows:
        for context in options.contexts:
            yield attending(config, "attention", rows, 1, context)
        yield from choosing(config, rows)
    yield from long(config, min(PROMPT, config.max_position_embeddings))


def check(name: str, got: Sequence[Tensor], wanted: Sequence[Tensor], bound: float) -> None:
    """SystemExit where a result is off: by its greatest difference over the greatest value, integers by how many differ."""
    for mine, right in zip(got, wanted, strict=False):  # torch has no sums of diff_add
        if right.is_floating_point():
            wide = right.double()
            error = float((mine.double() - wide).abs().max() / wide.abs().max())
        else:
            error = float((mine != right).double().mean())
        if not error <= bound:  # also where it is not a number
            raise SystemExit(f"{name}: its error is {error:.3g}, wanted at most {bound:g}")


def spread(calls: list[Call], options: argparse.Namespace) -> Spread:
    if options.device != "cpu":
        return gpu_spread(calls, options.repeats)
    begin = time.perf_counter()
    calls[0]()
    return Spread.of([time.perf_counter() - begin])


def measured(case: Case, config: ModelConfig, limits: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    wanted = case.wanted()
    name = f"{case.op} {case.kind} x{case.rows}"
    check(name, case.mine[0](), wanted, case.bound)
    check(f"{name} in torch", case.theirs[0](), wanted, case.bound)
    del wanted
    mine, theirs = spread(case.mine, options), spread(case.theirs, options)
    kind = case.kind if case.kind in KINDS else "float16"
    flops, nbytes = work(config, kind, case.rows, case.context, "prefill" in case.op)[case.op]
    least = max(nbytes / limits["copy_GB/s"] / 1e9, flops / limits["matmul_TFLOP/s"] / 1e12)
    return {
        "op": case.op, "kind": case.kind, "rows": case.rows, "context": case.context,
        "us": mine.median * 1e6, "p20": mine.p20 * 1e6, "p80": mine.p80 * 1e6,
        "GB/s": nbytes / mine.median / 1e9, "TFLOP/s": flops / mine.median / 1e12, "share": least / mine.median,
        "torch_us": theirs.median * 1e6, "speedup": theirs.median / mine.median,
    }  # fmt: skip


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="13b")
    options.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64], help="sequences of a decode step")
    options.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="types of the weights")
    options.add_argument("--contexts", type=int, nargs="+", default=[128, 2048])
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--repeats", type=int, default=30, help="timed replays of each op's graph")
    options.add_argument("--quick", action="store_true", help="only the first of --rows, --kinds and --contexts")
    chosen = options.parse_args()
    checking = chosen.device == "cpu" and chosen.preset == "tiny" and interpreting()
    if not checking and (chosen.device == "cpu" or interpreting() or not torch.cuda.is_available()):
        raise SystemExit(
            "bench_kernels needs a GPU (device cuda); to check the results without one, set TRITON_INTERPRET=1 and give"
            " --device cpu --preset tiny"
        )
    if chosen.repeats < 1 or min(*chosen.rows, *chosen.contexts) < 1:
        options.error("--repeats, --rows and --contexts must be at least 1")
    if chosen.quick:
        chosen.rows, chosen.kinds, chosen.contexts = chosen.rows[:1], chosen.kinds[:1], chosen.contexts[:1]
    shape = PRESETS[chosen.preset]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    limits = ceilings(chosen.device)
    print(", ".join(f"{name} {value:.4g}" for name, value in limits.items()), flush=True)
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device(chosen.device):
        rows = [measured(case, config, limits, chosen) for case in cases(config, chosen)]
    report("kernels", rows, chosen, chosen.device, {"preset": chosen.preset, "ceilings": limits})
    return 0


if __name__ == "__main__":
    sys.exit(main())
