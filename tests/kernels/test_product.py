"""The fused products through the interpreter: against float64 oracles, for every kind of weight and number of rows."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, EPS, case, matrix, rand

from baize_engine.kernels import quantized, reference

KINDS = ("same", "int8", "int4")


def wide(weight: Any) -> torch.Tensor:
    return quantized.dequantize(weight).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 96, 128), (3, 70, 200), (17, 40, 64), (64, 33, 96)])
def test_linear(triton: Interpreter, rows: int, n: int, k: int, activation: str, kind: str) -> None:
    dtype = ACTIVATIONS[activation]
    x, _ = case(rows, k, dtype)
    weight = matrix(n, k, kind, dtype)
    got, _ = triton.call("product", "linear", x, weight)
    oracles.no_worse(got, reference.linear(x, weight), x.double() @ wide(weight).T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 5, 12, 70])
def test_linear_add(triton: Interpreter, rows: int, activation: str, kind: str) -> None:
    dtype = ACTIVATIONS[activation]
    x, _ = case(rows, 172, dtype)
    weight, before = matrix(72, 172, kind, dtype), rand(rows, 72, seed=9, dtype=dtype)
    got, _ = triton.call("product", "linear_add", x, weight, out=before.clone())
    plain = reference.linear_add(x, weight, out=before.clone())
    oracles.no_worse(got, plain, before.double() + x.double() @ wide(weight).T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "hidden", "inner"), [(1, 128, 80), (4, 72, 86), (12, 64, 48), (70, 72, 40)])
def test_gate_up(triton: Interpreter, rows: int, hidden: int, inner: int, activation: str, kind: str) -> None:
    dtype = ACTIVATIONS[activation]
    x, norm = case(rows, hidden, dtype)
    weight = matrix(2 * inner, hidden, kind, dtype)
    out = torch.full((rows, inner), float("nan"), dtype=dtype)
    got, _ = triton.call("product", "gate_up", x, norm, EPS, [weight], out=out)
    parts = oracles.rms_norm(x, norm, EPS) @ wide(weight).T
    oracle = oracles.silu_mul(parts[:, :inner], parts[:, inner:])
    oracles.no_worse(got, reference.gate_up(x, norm, EPS, [weight], out=out.clone()), oracle)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "dim", "batch_invariant"),
    [(1, 4, 4, 8, True), (5, 4, 2, 16, True), (12, 6, 1, 24, True), (70, 4, 2, 16, False)],
)
def test_qkv_rope_store(
    triton: Interpreter,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    batch_invariant: bool,
    activation: str,
    kind: str,
) -> None:
    """Also 70 rows of a prompt, which take the library's product and the kernels of norm and rope."""
    dtype, hidden = ACTIVATIONS[activation], 72
    x, norm = case(rows, hidden, dtype)
    weight = matrix((heads + 2 * kv_heads) * dim, hidden, kind, dtype)
    angle = torch.arange(128)[:, None] * torch.arange(1, dim // 2 + 1)[None, :] / 7
    cos, sin = angle.cos(), angle.sin()
    positions = torch.randperm(128, generator=torch.Generator().manual_seed(1))[:rows]
    slots = torch.randperm(6 * 16, generator=torch.Generator().manual_seed(2))[:rows]
    q = torch.full((rows, heads, dim), float("nan"), dtype=dtype)
    k_cache, v_cache = (torch.full((6, 16, kv_heads, dim), 7.0, dtype=dtype) for _ in range(2))
    state = (cos, sin, positions, k_cache, v_cache, slots)
    _, after = triton.call(
        "product", "qkv_rope_store", x, norm, EPS, [weight], *state, q=q, batch_invariant=batch_invariant
    )
    plain_q, plain_k, plain_v = q.clone(), k_cache.clone(), v_cache.clone()
    reference.qkv_rope_store(x, norm, EPS, [weight], cos, sin, positions, plain_k, plain_v, slots, q=plain_q)
    parts = (oracles.rms_norm(x, norm, EPS) @ wide(weight).T).unflatten(1, (-1, dim))
    turned = oracles.rope(parts[:, : heads + kv_heads], cos, sin, positions)
    got_k, got_v, got_q = after[7], after[8], after[10]
    oracles.no_worse(got_q, plain_q, turned[:, :heads])
    for got, plain, oracle in (
        (got_k, plain_k, turned[:, heads:]),
        (got_v, plain_v, parts[:, heads + kv_heads :]),
    ):
        oracles.no_worse(got.flatten(0, 1)[slots], plain.flatten(0, 1)[slots], oracle)
        others = torch.ones(6 * 16, dtype=torch.bool)
        others[slots] = False
        assert bool((got.flatten(0, 1)[others] == 7.0).all())


@pytest.mark.parametrize("rows", [1, 12, 70])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_head_and_the_best_of_each_block(triton: Interpreter, activation: str, rows: int) -> None:
    dtype = ACTIVATIONS[activation]
    x, norm = case(rows, 64, dtype)
    weight = matrix(107, 64, "same", dtype)
    weight[40] = weight[39]  # equals: the first counts
    out, best = torch.zeros(rows, 107), torch.zeros(rows, 4, dtype=torch.int32)
    got, after = triton.call("product", "head", x, norm, EPS, weight, out=out, best=best)
    oracle = oracles.rms_norm(x, norm, EPS) @ weight.double().T
    plain = reference.head(x, norm, EPS, weight, out=torch.zeros(rows, 107))
    oracles.no_worse(got.to(dtype), plain.to(dtype), oracle)
    without_best, _ = triton.call("product", "head", x, norm, EPS, weight, out=torch.zeros(rows, 107))
    oracles.no_worse(without_best.to(dtype), plain.to(dtype), oracle)  # of 70 rows the library's product
    for block in range(4):
        part = got[:, block * 32 : (block + 1) * 32]
        assert after[5][:, block].tolist() == (block * 32 + part.argmax(1)).tolist()


def test_a_value_that_is_not_finite_is_marked(triton: Interpreter) -> None:
    x, norm = case(2, 64, torch.float16)
    weight = matrix(70, 64, "same", torch.float16)
    weight[33, 5] = float("inf")
    best = torch.zeros(2, 3, dtype=torch.int32)
    _, after = triton.call("product", "head", x, norm, EPS, weight, out=torch.zeros(2, 70), best=best)
    assert (after[5] == -1).tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(triton: Interpreter, kind: str) -> None:
    """1, 2, 9 (the norm in a kernel of its own) and 40 rows give each row the same bits."""
    x, norm = case(40, 200, torch.float16)
    weight = matrix(2 * 48, 200, kind, torch.float16)
    alone = [
        triton.call(
            "product", "gate_up", x[t : t + 1], norm, EPS, [weight], out=torch.zeros(1, 48).half(), batch_invariant=True
        )[0]
        for t in (0, 3, 8)
    ]
    for rows in (9, 40):
        out = torch.zeros(rows, 48).half()
        together, _ = triton.call("product", "gate_up", x[:rows], norm, EPS, [weight], out=out, batch_invariant=True)
        for t, row in zip((0, 3, 8), alone, strict=True):
            assert torch.equal(together[t : t + 1], row)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_that_must_not_depend(triton: Interpreter, kind: str) -> None:
    """More rows than a program holds: a second program along the rows."""
    x, _ = case(66, 64, torch.float16)
    weight = matrix(40, 64, kind, torch.float16)
    got, _ = triton.call("product", "linear", x, weight, batch_invariant=True)
    last, _ = triton.call("product", "linear", x[65:], weight, batch_invariant=True)
    assert torch.equal(got[65:], last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompts_linear(triton: Interpreter, kind: str) -> None:
    """More rows than the kernel takes: the library's product, of quantised matrices also block by block."""
    x, _ = case(70, 200, torch.float32)
    weight = matrix(50, 200, kind, torch.float32)
    got, _ = triton.call("product", "linear", x, weight)
    in_blocks, _ = triton.run("decoders", "linear_in_blocks", x, weight, 4 * 200 * 7)
    assert (in_blocks - got).abs().max() < 1e-4
    oracles.no_worse(got, reference.linear(x, weight), x.double() @ wide(weight).T)


def test_nothing_is_written_beside_the_output(triton: Interpreter) -> None:
    x, _ = case(3, 40, torch.float16)
    memory = torch.full((64 + 3 * 50 + 64,), 7.0, dtype=torch.float16)
    out = memory[64 : 64 + 150].view(3, 50)
    got, _ = triton.call("product", "linear", x, matrix(50, 40, "same", torch.float16), out=out)
    around = torch.tensor([], dtype=torch.float16).set_(got.untyped_storage())
    assert around.numel() == memory.numel()
    assert bool((around[:64] == 7).all())
    assert bool((around[-64:] == 7).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(8, 5).half()}, r"weight has shape \(8, 5\), wanted \(N, 4\)"),
        ({"out": torch.zeros(2, 9).half()}, r"out has shape \(2, 9\), wanted contiguous \(2, 8\)"),
        ({"weight": torch.zeros(4, 8).half().t()}, "weight of shape .* is strided"),
    ],
)
def test_wrong_arguments_are_named(triton: Interpreter, change: dict[str, Any], message: str) -> None:
    call = {
        "x": torch.zeros(2, 4).half(),
        "weight": torch.zeros(8, 4).half(),
        "out": torch.zeros(2, 8).half(),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        triton.call("product", "linear", call["x"], call["weight"], out=call["out"])
