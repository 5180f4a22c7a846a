"""The decoder's ops one by one, at the sizes of a model: the expected result, the machine's implementation, and torch's.

A case has its data several times, so that a pass over all of it finds no weights and no cache rows in the processor's cache;
activations come from there, as in a decode step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from baize_engine.backend import choose
from baize_engine.backend.plan_ops import (
    Advance,
    Attention,
    Embed,
    GateUp,
    Head,
    LinearAdd,
    PlanOp,
    QkvRopeStore,
    Sample,
)
from baize_engine.kernels import quantized, reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.rope import tables

TOUCHED, MOST = 512 << 20, 128  # bytes that the copies of an op's data have together, where as many as MOST reach that
BLOCK, STOPS = 16, 8  # tokens of a cache block, stop ids of a row
HALF = 1e-2  # greatest difference over greatest value: a few roundings to float16, of 5e-4 each
BYTES = 5e-2  # the same where a CPU rounds activations to 8 bits, of 4e-3 each
DRAWN = 0.05  # share of drawn ids that may differ: two of 32000 may be as close as the roundings of a logarithm
Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One op at one size. `mine` and `theirs`: its calls, one for each copy of its data; `wanted`: the right results.

    `mine` writes `results`; a call of the other two returns its own.
    """

    op: str
    kind: str
    rows: int
    context: int
    mine: list[PlanOp | Call]
    results: list[Tensor]
    theirs: list[Call]
    wanted: Call
    bound: float = HALF


@dataclass(frozen=True)
class Machine:
    """Where the ops run. `ops`: functions by the names of kernels/reference.py; `copied`: whether data is rotated."""

    ops: Any
    activation: torch.dtype
    copied: bool = True

    @property
    def is_gpu(self) -> bool:
        """Whether the ops are the GPU's, be it through the interpreter."""
        return self.activation == torch.float16

    def calls(self, mine: Sequence[PlanOp | Call]) -> list[Call]:
        """Each op, or call, as a call by itself."""
        return [partial(getattr(self.ops, op.name), **op.operands()) if isinstance(op, PlanOp) else op for op in mine]

    def values(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Random activations."""
        return torch.randn(shape, dtype=self.activation) * scale

    def gains(self, size: int) -> Tensor:
        return 1 + self.values(size, scale=0.1)

    def copies(self, nbytes: int) -> int:
        """Copies of an op's data to rotate through."""
        return min(MOST, max(1, ceil(TOUCHED / nbytes))) if self.copied else 1

    def rotation(self, weight: quantized.Weight) -> list[quantized.Weight]:
        return [weight, *(quantized.join([weight]) for _ in range(self.copies(weight.nbytes) - 1))]

    def cache(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.activation)


def gpu(copied: bool = True) -> Machine:
    """The Triton kernels."""
    from baize_engine.kernels import attention, diff_add, norm, product, rope, sample, silu

    names = {
        product: ("qkv_rope_store", "linear_add", "gate_up", "head"), attention: ("attention",), norm: ("rms_norm",),
        sample: ("embed", "sample", "advance"), rope: ("rope_and_store",), silu: ("silu_mul",),
    }  # fmt: skip
    ops = {name: getattr(module, name) for module, found in names.items() for name in found}
    return Machine(SimpleNamespace(**ops, diff_add=diff_add.launch), torch.float16, copied)


def cpu() -> Machine:
    """The ops that the backend chooses for this CPU."""
    return Machine(choose.ops("cpu"), torch.float32)


def work(
    config: ModelConfig, kind: str, rows: int, context: int, prompt: bool, activation: str = "float16"
) -> dict[str, tuple[int, int]]:
    """Operations and bytes of one call of each op; `rows` tokens of as many sequences, or of one prompt."""
    costs = (
        cost.prefill(config, rows, kind, activation, "float16")
        if prompt
        else cost.decode_step(config, kind, rows, context or 1, activation, "float16")
    )
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


def products(m: Machine, config: ModelConfig, kind: str, batches: Sequence[int], prompt: int = 0) -> Iterator[Case]:
    """The ops that read weights, for each of `batches`; and for a prompt of so many tokens, which has no head."""
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    gain, (cos, sin) = m.gains(hidden), tables(config, config.max_position_embeddings, str(torch.get_default_device()))
    Made = tuple[list[PlanOp | Call], list[Tensor], list[Call], Call]

    def in_bytes(rows: int) -> bool:
        """Whether a model has the activations of this product rounded to 8 bits (model/llama.py)."""
        return not m.is_gpu and (kind == "int4" or (kind == "int8" and rows == prompt))

    def qkv(weights: list[Any], wide: list[Any], rows: int) -> Made:
        x, slots = m.values(rows, hidden), torch.randperm(rows * BLOCK)[:rows]
        positions = torch.randint(config.max_position_embeddings, (rows,))

        def state() -> list[Tensor]:
            return [m.cache(rows, heads, dim), *m.cache(2, rows, BLOCK, kv, dim)]

        def fused(out: list[Tensor], weight: Any) -> QkvRopeStore:
            return QkvRopeStore(
                x, gain, eps, [weight], cos, sin, positions, out[1], out[2], slots, q=out[0],
                int8_activations=in_bytes(rows),
            )  # fmt: skip

        def plain(out: list[Tensor], weight: Tensor) -> list[Tensor]:
            parts = F.linear(F.rms_norm(x, (hidden,), gain, eps), weight).unflatten(1, (-1, dim))
            q, k, v = parts.split([heads, kv, kv], 1)
            reference.rope_and_store(q, k, v, cos, sin, positions, *out[1:], slots)
            return [q, *out[1:]]

        def right() -> list[Tensor]:
            reference.qkv_rope_store(**fused(out := state(), weights[0]).operands())
            return out

        mine, theirs = state(), state()
        return (
            [fused(mine, w) for w in weights], mine, [partial(plain, theirs, w) for w in wide], right
        )  # fmt: skip

    def add(weights: list[Any], wide: list[Any], rows: int) -> Made:
        x, before = m.values(rows, weights[0].shape[1], scale=0.25), m.values(rows, hidden, scale=0.3)  # stays finite
        mine, theirs = before.clone(), before.clone()
        return (
            [LinearAdd(x, w, out=mine, int8_activations=in_bytes(rows)) for w in weights], [mine],
            [lambda w=w: [theirs.addmm_(x, w.t())] for w in wide], lambda: [reference.linear_add(x, weights[0], out=before)],
        )  # fmt: skip

    def swiglu(weights: list[Any], wide: list[Any], rows: int) -> Made:
        x, out = m.values(rows, hidden), m.values(rows, inner)

        def plain(weight: Tensor) -> list[Tensor]:
            gate, up = F.linear(F.rms_norm(x, (hidden,), gain, eps), weight).chunk(2, 1)
            return [F.silu(gate) * up]

        return (
            [GateUp(x, gain, eps, [w], out=out, int8_activations=in_bytes(rows)) for w in weights], [out],
            [partial(plain, w) for w in wide],
            lambda: [reference.gate_up(x, gain, eps, weights[:1], out=torch.empty_like(out))],
        )  # fmt: skip

    def logits(weights: list[Any], wide: list[Any], rows: int) -> Made:
        x, out = m.values(rows, hidden), torch.empty(rows, config.vocab_size)
        best = torch.empty(rows, -(-config.vocab_size // reference.BEST_BLOCK), dtype=torch.int32)
        return (
            [Head(x, gain, eps, w, out=out, best=best) for w in weights], [out],
            [lambda w=w: [F.linear(F.rms_norm(x, (hidden,), gain, eps), w).float()] for w in wide],
            lambda: [reference.head(x, gain, eps, weights[0], out=torch.empty_like(out))],
        )  # fmt: skip

    for op, shape, made in (
        ("qkv_rope_store", ((heads + 2 * kv) * dim, hidden), qkv), ("linear_add o", (hidden, heads * dim), add),
        ("gate_up", (2 * inner, hidden), swiglu), ("linear_add down", (hidden, inner), add),
        ("head", (config.vocab_size, hidden), logits),
    ):  # fmt: skip
        drawn = torch.randn(shape, dtype=torch.float16) * shape[1] ** -0.5
        coded = drawn if kind == "float16" else quantized.quantize(drawn, kind)
        if m.is_gpu and isinstance(coded, quantized.Int4Weight):
            coded = quantized.in_rows(coded)
        weights = m.rotation(coded)
        same = isinstance(weights[0], Tensor) and m.activation == torch.float16
        wide = weights if same else m.rotation(quantized.dequantize(weights[0], m.activation))
        for rows in [*batches, *([prompt] if prompt and op != "head" else [])]:
            bound = BYTES if in_bytes(rows) and op != "head" else HALF
            yield Case(op, kind, rows, 0, *made(weights, wide, rows), bound)


def attending(m: Machine, config: ModelConfig, op: str, batch: int, queries: int, context: int) -> Case:
    """`queries` tokens of each of `batch` sequences attend to its `context`, themselves the last of it."""
    heads, kv, dim, scale = config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5
    blocks = -(-context // BLOCK)
    shape = (batch * blocks, BLOCK, kv, dim)
    nbytes = 2 * m.activation.itemsize * batch * blocks * BLOCK * kv * dim
    caches = [(m.values(*shape), m.values(*shape)) for _ in range(m.copies(nbytes))]
    places = torch.randperm(batch * blocks).view(batch, blocks)
    table, starts = places.int(), torch.arange(batch + 1, dtype=torch.int32) * queries
    q, lens = m.values(batch * queries, heads, dim), torch.full((batch,), context, dtype=torch.int32)
    whole = [
        [part[places].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for part in cache] for cache in caches
    ]
    out, max_context = torch.empty_like(q), context if queries == 1 else queries

    def theirs(k: Tensor, v: Tensor) -> list[Tensor]:
        rows = q.view(batch, queries, heads, dim).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(rows, k, v, is_causal=queries > 1, scale=scale, enable_gqa=heads != kv)
        return [mixed.transpose(1, 2).reshape(q.shape)]

    places_of = (table, starts, lens, scale)
    return Case(
        op, str(m.activation).removeprefix("torch."), batch * queries, context,
        [Attention(q, *cache, *places_of, out=out, max_context=max_context) for cache in caches], [out],
        [partial(theirs, *cache) for cache in whole], lambda: [reference.attention(q, *caches[0], *places_of)],
    )  # fmt: skip


def choosing(m: Machine, config: ModelConfig, rows: int) -> Iterator[Case]:
    """The ops of a step around its layers."""
    hidden, vocab = config.hidden_size, config.vocab_size
    many = m.copies(rows * hidden * 2)
    weight, ids = torch.randn(vocab, hidden).half(), [torch.randint(vocab, (rows,)) for _ in range(many)]
    out = m.values(rows, hidden)
    yield Case("embed", "float16", rows, 0, [Embed(i, weight, out=out) for i in ids], [out],
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
        settings = [torch.full((rows,), value) for value in (*values, 0.0)]
        chosen = torch.zeros(rows, dtype=torch.int64)
        theirs: Call = partial(drawn, logits, *values, keys) if values[0] else lambda: [logits.argmax(-1)]
        yield Case(
            op, "float32", rows, 0, [Sample(logits, *settings, *keys, out=chosen, best=given)], [chosen],
            [theirs], lambda s=settings: [reference.sample(logits, *s, *keys)], bound=DRAWN if values[0] else 0.0,
        )  # fmt: skip
    wide = 1 << 40  # tokens of a block, so that no run of steps leaves the first

    def state() -> list[Tensor]:
        return [torch.full((rows,), 9), torch.arange(rows), torch.arange(rows), torch.arange(rows).int(),
                torch.full((rows,), 1 << 30, dtype=torch.int32)]  # fmt: skip

    def step(out: list[Tensor]) -> list[Tensor]:
        reference.advance(tokens, *out, stops, table, wide)
        return out

    tokens, stops = torch.randint(vocab, (rows,)), torch.full((rows, STOPS), -7)
    table, mine = torch.zeros(rows, 1, dtype=torch.int32), state()
    yield Case("advance", "int64", rows, 0, [Advance(tokens, *mine, stops, table, wide)], mine,
               [partial(step, state())], partial(step, state()), bound=0.0)  # fmt: skip


def drawn(logits: Tensor, temperature: float, top_k: int, top_p: float, keys: Any) -> list[Tensor]:
    """`reference.sample` of rows that are all drawn alike, as torch does it best: the host knows top_k, and never waits."""
    scaled = logits / temperature
    greatest = scaled.topk(top_k).values
    shares = greatest.softmax(-1)
    likelier = shares.cumsum(-1) - shares
    last = (likelier < top_p).sum(-1, keepdim=True) - 1
    kept = scaled >= greatest.gather(1, last)
    noise = -torch.log(-torch.log(reference.uniform(*keys, torch.arange(logits.shape[1], device=logits.device))))
    return [torch.where(kept, scaled + noise, float("-inf")).argmax(-1)]
