"""What several devices share of a model: however many there are, each result has the same bits, in the reference and in Triton.

A product's columns are segments, whose sums are added in a tree; its rows are units, which a library computes one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, EPS, case, matrix, rand

from baize_engine.kernels import quantized, reference
from baize_engine.model.share import SEGMENTS

KINDS = [
    ("fp32", "same"),
    ("fp16", "same"),
    ("bf16", "same"),
    ("fp16", "int8"),
    ("bf16", "int4"),
]  # activations, weights
HIDDEN, HEADS, KV_HEADS, DIM, INNER = 37, 16, 8, 4, 24  # odd columns: a row begins off the lines that libraries like
Run = Callable[..., Any]


@pytest.fixture(params=["reference", "triton"])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls an op by name; what it wrote to `out`, or to q, keys and values."""
    if request.param == "reference":

        def call(op: str, *args: Any, **kwargs: Any) -> Any:
            result = getattr(reference, op)(*args, **kwargs)
            return (kwargs["q"], args[7], args[8]) if result is None else (result,)
    else:
        triton: Interpreter = request.getfixturevalue("triton")

        def call(op: str, *args: Any, **kwargs: Any) -> Any:
            result, after = triton.call("sums" if op == "add_sums" else "product", op, *args, **kwargs)
            return (after[len(args) + list(kwargs).index("q")], after[7], after[8]) if result is None else (result,)

    return call


def share(weights: list[Any], rank: int, ranks: int) -> list[Any]:
    """The rows of each that a rank holds, in memory of their own."""
    steps = [weight.shape[0] // ranks for weight in weights]
    found = [quantized.rows(w, rank * step, (rank + 1) * step) for w, step in zip(weights, steps, strict=True)]
    return [quantized.join([each]) for each in found]


@pytest.mark.parametrize(("activation", "kind"), KINDS)
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("segments", [1, 2, 4, 8])
def test_segment_sums_are_sums_of_products(run: Run, segments: int, rows: int, activation: str, kind: str) -> None:
    dtype, count, columns = ACTIVATIONS[activation], 40, 72
    x, _ = case(rows, segments * columns, dtype)
    weight = matrix(segments * count, columns, kind, dtype)
    out = torch.full((rows, count), float("nan"))
    (got,) = run("segment_sums", x, weight, segments=segments, out=out.clone())
    wide = quantized.dequantize(weight).double().unflatten(0, (segments, count))
    oracle = torch.einsum("tsk,snk->tn", x.double().unflatten(1, (segments, columns)), wide)
    whole = quantized.dequantize(weight, dtype).unflatten(0, (segments, count)).transpose(0, 1).flatten(1)
    plain = reference.linear(x, whole)  # one product, rounded once
    assert got.dtype == torch.float32
    oracles.no_worse(got.to(dtype), plain, oracle)


@pytest.mark.parametrize(("activation", "kind"), KINDS)
@pytest.mark.parametrize(
    ("rows", "batch_invariant", "columns"), [(1, False, 64), (3, True, 37), (70, False, 37), (66, True, 37)]
)
def test_any_number_of_ranks_has_the_same_sums(
    run: Run, rows: int, batch_invariant: bool, columns: int, activation: str, kind: str
) -> None:
    dtype, count = ACTIVATIONS[activation], 21
    x, _ = case(rows, SEGMENTS * columns, dtype)
    weight = matrix(SEGMENTS * count, columns, kind, dtype)
    before = rand(rows, count, seed=3, dtype=dtype)

    def added(ranks: int) -> torch.Tensor:
        parts, segments = [], SEGMENTS // ranks
        for rank in range(ranks):
            own = x[:, rank * segments * columns : (rank + 1) * segments * columns].contiguous()
            out, how = torch.empty(rows, count), {"segments": segments, "batch_invariant": batch_invariant}
            parts += run("segment_sums", own, *share([weight], rank, ranks), out=out, **how)
        return run("add_sums", torch.stack(parts), out=before.clone())[0]

    whole = added(1)
    assert bool(torch.isfinite(whole).all())
    for ranks in (2, 4, 8):
        assert torch.equal(added(ranks), whole), ranks


ROWS = [(1, False), (3, True), (70, False)]  # of which the last is the library's product, in units


def pieces(weights: list[Any], rank: int, ranks: int) -> list[Any]:
    """The rows of all that a rank holds, joined."""
    return [quantized.join(share(weights, rank, ranks))]


def qkv(
    run: Run, x: torch.Tensor, norm: torch.Tensor, weights: list[Any], ranks: int, **how: Any
) -> list[torch.Tensor]:
    """q, and what of the caches was written, of one of `ranks`."""
    kv_heads, rows = KV_HEADS // ranks, x.shape[0]
    caches = [torch.full((6, 16, kv_heads, DIM), 7.0, dtype=x.dtype) for _ in range(2)]
    q = torch.full((rows, HEADS // ranks, DIM), float("nan"), dtype=x.dtype)
    angle = torch.arange(96)[:, None] * torch.arange(1, DIM // 2 + 1)[None, :] / 7
    places = angle.cos(), angle.sin(), torch.arange(rows) + 2, *caches, torch.arange(rows) + 5
    q, *caches = run("qkv_rope_store", x, norm, EPS, weights, *places, q=q, **how)
    return [q, *(cache.flatten(0, 1) for cache in caches)]


@pytest.mark.parametrize(("activation", "kind"), KINDS)
@pytest.mark.parametrize(("rows", "batch_invariant"), ROWS)
def test_any_number_of_ranks_has_the_same_q_k_and_v(
    run: Run, rows: int, batch_invariant: bool, activation: str, kind: str
) -> None:
    dtype = ACTIVATIONS[activation]
    x, norm = case(rows, HIDDEN, dtype)
    counts = HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM
    matrices = [matrix(count, HIDDEN, kind, dtype, seed) for seed, count in enumerate(counts)]

    def together(ranks: int) -> list[torch.Tensor]:
        how = {"units": 8 // ranks, "batch_invariant": batch_invariant}
        found = [qkv(run, x, norm, pieces(matrices, rank, ranks), ranks, **how) for rank in range(ranks)]
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]

    whole = together(1)
    plain = qkv(run, x, norm, pieces(matrices, 0, 1), 1, batch_invariant=batch_invariant)
    for one, other in zip(whole, plain, strict=True):
        assert (one - other).abs().max() <= 8 * torch.finfo(dtype).eps * other.abs().max()
    for ranks in (2, 8):
        for one, other in zip(together(ranks), whole, strict=True):
            assert torch.equal(one, other), ranks


@pytest.mark.parametrize(("activation", "kind"), KINDS)
@pytest.mark.parametrize(("rows", "batch_invariant"), ROWS)
def test_any_number_of_ranks_has_the_same_gate_and_up(
    run: Run, rows: int, batch_invariant: bool, activation: str, kind: str
) -> None:
    dtype = ACTIVATIONS[activation]
    x, norm = case(rows, HIDDEN, dtype)
    matrices = [matrix(INNER, HIDDEN, kind, dtype, seed) for seed in (5, 6)]

    def together(ranks: int) -> torch.Tensor:
        how = {"units": 8 // ranks, "batch_invariant": batch_invariant}
        outs = [torch.empty(rows, INNER // ranks, dtype=dtype) for _ in range(ranks)]
        parts = [pieces(matrices, rank, ranks) for rank in range(ranks)]
        found = [run("gate_up", x, norm, EPS, w, out=out, **how) for w, out in zip(parts, outs, strict=True)]
        return torch.cat([out for (out,) in found], 1)

    whole = together(1)
    wide = [quantized.dequantize(each).double() for each in matrices]
    gate, up = (oracles.rms_norm(x, norm, EPS) @ each.T for each in wide)
    plain = reference.gate_up(x, norm, EPS, matrices, out=torch.empty_like(whole))
    oracles.no_worse(whole, plain, oracles.silu_mul(gate, up))
    for ranks in (2, 8):
        assert torch.equal(together(ranks), whole), ranks


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "batch_invariant"), ROWS)
def test_any_number_of_ranks_has_the_same_logits(run: Run, rows: int, batch_invariant: bool, activation: str) -> None:
    dtype, vocabulary = ACTIVATIONS[activation], 104
    x, norm = case(rows, HIDDEN, dtype)
    weight = matrix(vocabulary, HIDDEN, "same", dtype)

    def together(ranks: int) -> torch.Tensor:
        how, out = {"units": 8 // ranks, "batch_invariant": batch_invariant}, torch.empty(rows, vocabulary // ranks)
        found = [
            run("head", x, norm, EPS, *share([weight], rank, ranks), out=out.clone(), **how) for rank in range(ranks)
        ]
        return torch.cat([logits for (logits,) in found], 1)

    whole = together(1)
    plain = reference.head(x, norm, EPS, weight, out=torch.empty_like(whole))
    oracles.no_worse(whole.to(dtype), plain.to(dtype), oracles.rms_norm(x, norm, EPS) @ weight.double().T)
    for ranks in (2, 8):
        assert torch.equal(together(ranks), whole), ranks


@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 70])
def test_separate_matrices_have_the_bits_of_joined_ones(rows: int, kind: str) -> None:
    x, norm = case(rows, HIDDEN, torch.float32)
    matrices = [matrix(INNER, HIDDEN, kind, torch.float32, seed) for seed in (5, 6)]
    for units in (1, 2, 8):
        found = [
            reference.gate_up(x, norm, EPS, weights, out=torch.empty(rows, INNER), units=units)
            for weights in (matrices, [quantized.join(matrices)])
        ]
        assert torch.equal(*found)
