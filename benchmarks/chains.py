"""Chains of ops of a decode step, which the tuner measures, over random weights that no cache holds between passes.

Chains instead of single ops, because a kernel's trigger and prefetches show in the time of its neighbours.
On the device "meta" a chain has shapes only, which is enough to compile its kernels (benchmarks/precompile.py). Indices are
worked out on the CPU: to do so on "meta" torch would import its compiler first, 1.4 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from models import SPREAD
from torch import Tensor
from tuner import BITS, Op

from baize_engine.kernels import quantized, reference
from baize_engine.model.config import ModelConfig
from baize_engine.model.rope import tables

TOUCHED = 512 << 20  # bytes of weights in a pass: ten times the L2 of an H100
LAYERS = 2  # at least: the first kernels of a layer follow the last of the one before
BLOCK = 16  # tokens of a cache block
CONTEXTS = (256, 2048)  # tokens of a cache: attention is measured at all, what is beside it at the first
FILTERS = {
    "top_k 40, top_p 0.9": (40, 0.9),
    "top_p 0.9": (0, 0.9),
}  # the sampler looks at some blocks of logits, or at all
SPOILED, NOTHING = float("nan"), -5  # what no call writes

Call = tuple[str, partial[Any]]  # an op's name in a step, and a call of it


@dataclass
class Chain:
    """`calls` of one pass in each view: a context, or a way to draw. `units`: layers, matrices or draws in a pass.

    `rewind` puts back what a pass has changed of its inputs. `spoil` does so and spoils what a view's calls write, so that
    what they do not write shows; `results` are what they wrote.
    """

    name: str
    ops: tuple[Op, ...]
    calls: dict[str, list[Call]]
    units: int
    rewind: Callable[[], object]
    spoil: Callable[[str], None]
    results: Callable[[str], list[Tensor]]

    @property
    def first(self) -> str:
        return next(iter(self.calls))

    def views(self, ops: Sequence[Op]) -> list[str]:
        """Those in which these ops show: attention in every context, the sampler in every filter, others in the first."""
        return list(self.calls) if {op.op for op in ops} & {"attention", "sample"} else [self.first]


def kernels() -> Any:
    """The ops on a GPU."""
    from baize_engine.kernels import attention, product, sample

    return SimpleNamespace(
        qkv_rope_store=product.qkv_rope_store, attention=attention.attention, linear_add=product.linear_add,
        gate_up=product.gate_up, head=product.head, sample=sample.sample,
    )  # fmt: skip


def drawn(empty: Tensor, spread: float = 1.0) -> Tensor:
    """Fills it with random values; one on "meta" has none."""
    return empty if empty.is_meta else empty.normal_(0, spread)


def matrix(rows: int, columns: int, kind: str, device: str) -> quantized.Weight:
    """Random weights. Those of int8 and int4 are drawn as codes: quantising a layer of 65B takes longer than measuring it."""
    if kind == "float16":
        return drawn(torch.empty(rows, columns, dtype=torch.float16, device=device), SPREAD)
    made = quantized.empty(kind, rows, columns, device, panels=False)
    if isinstance(made, quantized.Int8Weight):
        made.values.random_(-127, 128)
        made.scales.fill_(SPREAD / 73)  # the standard deviation of such codes is 73
    else:
        made.values.random_(0, 256)
        made.scales.random_(-127, 128)
        made.factors.fill_(SPREAD / 73 / 67)  # that of int4's values is 67 in both tables
    return made


def layers(
    ops: Any, config: ModelConfig, kind: str, batch: int, device: str, views: Sequence[int] = CONTEXTS,
    touched: int = TOUCHED,
) -> Chain:  # fmt: skip
    """The layers of a model, as many as read `touched` bytes and LAYERS at least, over caches of `views` tokens."""
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    most, longest = config.max_position_embeddings, max(views)
    half: dict[str, Any] = {"dtype": torch.float16, "device": device}
    blocks = -(-longest // BLOCK)
    shapes = {
        "qkv_rope_store": ((heads + 2 * kv) * dim, hidden), "linear_add o": (hidden, heads * dim),
        "gate_up": (2 * inner, hidden), "linear_add down": (hidden, inner),
    }  # fmt: skip
    count = (
        1 if device == "meta" else max(LAYERS, ceil(touched * 8 / BITS[kind] / sum(n * k for n, k in shapes.values())))
    )
    start, x = drawn(torch.empty(batch, hidden, **half)), torch.empty(batch, hidden, **half)
    q, mixed = torch.empty(batch, heads, dim, **half), torch.empty(batch, heads, dim, **half)
    activated = torch.empty(batch, inner, **half)
    cos, sin = tables(config, most, device)
    table = torch.zeros(batch, -(-most // BLOCK), dtype=torch.int32)  # as wide as a model's
    table[:, :blocks] = torch.randperm(batch * blocks).view(batch, blocks)
    places = {}
    for context in views:
        lens = torch.full((batch,), context, dtype=torch.int32)
        slots = table[:, (context - 1) // BLOCK].long() * BLOCK + (context - 1) % BLOCK
        places[context] = tuple(each.to(device) for each in (lens.long() - 1, slots, lens))
    table, starts = table.to(device), torch.arange(batch + 1, dtype=torch.int32).to(device)
    weights = [{name: matrix(*shape, kind, device) for name, shape in shapes.items()} for _ in range(count)]
    norms = [torch.ones(hidden, **half) for _ in range(2 * count)]
    caches = [drawn(torch.empty(2, batch * blocks, BLOCK, kv, dim, **half)) for _ in range(count)]

    def calls(context: int) -> list[Call]:
        positions, slots, lens = places[context]
        found: list[Call] = []
        for number in range(count):
            mine, (keys, values) = weights[number], caches[number]
            turn = (cos, sin, positions, keys, values, slots)
            found += [
                (name, partial(getattr(ops, name.split()[0]), *given, **options))
                for name, given, options in (
                    ("qkv_rope_store", (x, norms[2 * number], eps, [mine["qkv_rope_store"]], *turn), {"q": q}),
                    (
                        "attention",
                        (q, keys, values, table, starts, lens, dim**-0.5),
                        {"out": mixed, "max_context": context},
                    ),
                    ("linear_add o", (mixed.flatten(1), mine["linear_add o"]), {"out": x}),
                    ("gate_up", (x, norms[2 * number + 1], eps, [mine["gate_up"]]), {"out": activated}),
                    ("linear_add down", (activated, mine["linear_add down"]), {"out": x}),
                )
            ]
        return [(n, call if n == "attention" else partial(call, batch_invariant=True)) for n, call in found]

    def rows_of(context: int) -> list[Tensor]:
        """What the steps write into the caches."""
        return [part.flatten(0, 1)[places[context][1]] for cache in caches for part in cache]

    def spoil(view: str) -> None:
        x.copy_(start)
        for written in (q, mixed, activated):
            written.fill_(SPOILED)
        for context in views:  # another view's rows, which this one may read, must not depend on what has run before
            value = SPOILED if str(context) == view else 1.0
            for cache in caches:
                for part in cache:
                    part.flatten(0, 1).index_fill_(0, places[context][1], value)

    def results(view: str) -> list[Tensor]:
        return [one.clone() for one in (x, q, mixed, activated)] + rows_of(int(view))

    nbytes = {name: n * k * BITS[kind] / 8 for name, (n, k) in shapes.items()}
    nbytes["attention"] = 4.0 * batch * sum(views) / len(views) * kv * dim
    whole = sum(nbytes.values())
    made = tuple(
        Op(
            name, 16 if name == "attention" else BITS[kind],
            (heads, kv, dim) if name == "attention" else shapes[name], batch, nbytes[name] / whole,
        )
        for name in ("qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down")
    )  # fmt: skip
    by_view = {str(context): calls(context) for context in views}
    return Chain("layers", made, by_view, count, partial(x.copy_, start), spoil, results)


def head(ops: Any, config: ModelConfig, kind: str, batch: int, device: str, touched: int = TOUCHED) -> Chain:
    """The last norm and the output matrix, several of them."""
    shape, eps = (config.vocab_size, config.hidden_size), config.rms_norm_eps
    count = 1 if device == "meta" else max(LAYERS, ceil(touched * 8 / BITS[kind] / (shape[0] * shape[1])))
    x = drawn(torch.empty(batch, shape[1], dtype=torch.float16, device=device))
    norm = torch.ones(shape[1], dtype=torch.float16, device=device)
    logits = torch.empty(batch, shape[0], device=device)
    best = torch.empty(batch, -(-shape[0] // reference.BEST_BLOCK), dtype=torch.int32, device=device)
    weights = [matrix(*shape, kind, device) for _ in range(count)]
    calls = [
        ("head", partial(ops.head, x, norm, eps, weight, out=logits, batch_invariant=True, best=best))
        for weight in weights
    ]

    def spoil(_: str) -> None:
        logits.fill_(SPOILED)
        best.fill_(NOTHING)

    made = (Op("head", BITS[kind], shape, batch, 1.0),)
    return Chain("head", made, {"": calls}, count, nothing, spoil, lambda _: [logits.clone(), best.clone()])


def sampler(ops: Any, vocabulary: int, batch: int, device: str) -> Chain:
    """A draw for each row, in the two ways that take different code."""
    logits, block = torch.randn(batch, vocabulary) * 3, reference.BEST_BLOCK
    padded = F.pad(logits, (0, -vocabulary % block), value=float("-inf")).unflatten(1, (-1, block))
    best = (padded.argmax(2) + torch.arange(padded.shape[1]) * block).int().to(device)
    logits = logits.to(device)
    keys = [(torch.arange(batch) * many).to(device) for many in (77_777_777_777, 0, 1)]
    keys[2] = keys[2].int()  # a step's positions are the lengths of its contexts
    chosen = torch.empty(batch, dtype=torch.int64, device=device)
    calls = {}
    for name, (top_k, top_p) in FILTERS.items():
        wanted = (torch.full((batch,), value, device=device) for value in (0.8, top_k, top_p, 0.0))
        calls[name] = [("sample", partial(ops.sample, logits, *wanted, *keys, out=chosen, best=best))]

    def spoil(_: str) -> None:
        chosen.fill_(NOTHING)

    made = (Op("sample", 32, (vocabulary,), batch, 1.0),)
    return Chain("sample", made, calls, 1, nothing, spoil, lambda _: [chosen.clone()])


def nothing() -> None:
    """The rewinding of calls that change none of their inputs."""


def of_ops(ops: Any, config: ModelConfig, kind: str, batch: int, name: str) -> Chain:
    """The chain that has the op `name`, as shapes."""
    if name == "head":
        return head(ops, config, kind, batch, "meta")
    if name == "sample":
        return sampler(ops, config.vocab_size, batch, "meta")
    return layers(ops, config, kind, batch, "meta", CONTEXTS[:1])
