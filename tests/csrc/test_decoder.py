"""The decoder's C++ kernels against float64, for every instruction set that this machine has."""

from __future__ import annotations

import itertools

import pytest
import torch
from implementations import IMPLEMENTATIONS, matrix

from baize_engine import _C
from baize_engine.backend import cpp_ops
from baize_engine.kernels import quantized, reference

KINDS = ("float32", "float16", "bfloat16", "int8", "int4")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def exact(x: torch.Tensor, weight: quantized.Weight) -> torch.Tensor:
    return x.double() @ quantized.dequantize(weight).double().t()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference over that of the values."""
    return float((found.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


# codes of 16 bits of 64 (int4) or 128 (int8) activations with one scale: a rounding of 2^-16 of the greatest of them at most
BOUND = {"int8": 3e-5, "int4": 3e-5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 64), (100, 172), (129, 700)])
def test_products_of_any_number_of_tokens(implementation: str, kind: str, rows: int, columns: int) -> None:
    weight = matrix(kind, rows, columns)
    for tokens in (1, 2, 3, 4, 5, 9, 16, 64, 65, 130):
        x, before = torch.randn(tokens, columns), torch.randn(tokens, rows)
        out = before.clone()
        cpp_ops.op("linear_add", implementation)(x, weight, out=out)
        assert error(out - before, exact(x, weight)) < BOUND.get(kind, 1e-6) + 1e-6, tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coarse", [True, False])
def test_products_of_no_token(implementation: str, kind: str, coarse: bool) -> None:
    weight, out = matrix(kind, 20, 36), torch.zeros(0, 20)
    found = cpp_ops.op("linear_add", implementation)(torch.zeros(0, 36), weight, out=out, int8_activations=coarse)
    assert found.shape == (0, 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [300, 1152])  # not whole vectors, and whole ones of several blocks, read in place
def test_a_row_is_the_same_alone_and_among_131(implementation: str, kind: str, columns: int) -> None:
    weight = matrix(kind, 70, columns)
    x = torch.randn(131, columns)
    whole = cpp_ops.op("linear_add", implementation)(x, weight, out=torch.zeros(131, 70))
    assert error(whole, exact(x, weight)) < BOUND.get(kind, 1e-6) + 1e-6
    for tokens in (1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 33, 64, 65):
        part = cpp_ops.op("linear_add", implementation)(x[:tokens].clone(), weight, out=torch.zeros(tokens, 70))
        assert torch.equal(part, whole[:tokens]), tokens


def in_bytes(x: torch.Tensor, kind: str, implementation: str) -> torch.Tensor:
    """x (T, K) as a product with int8 activations reads it: 127 levels each way, a scale for 128 (int8) or 64 (int4) columns.

    With int8 weights 63 levels where pairs of products are summed in 16 bits.
    """
    section = 128 if kind == "int8" else 64
    levels = 63 if kind == "int8" and implementation in ("avx_vnni", "avx2", "scalar") else 127
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % section)).unflatten(1, (-1, section))
    most = padded.abs().amax(2, keepdim=True)
    codes = (padded * (levels / most)).round()
    return (codes.double() * (most / levels).double()).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (33, 192), (100, 172), (129, 1100)])
def test_coarse_products(implementation: str, kind: str, rows: int, columns: int) -> None:
    """Exact but for the rounding of x to bytes; a row's bits do not depend on the others."""
    weight = matrix(kind, rows, columns)
    x, before = torch.randn(131, columns), torch.randn(131, rows)
    add = cpp_ops.op("linear_add", implementation)
    for tokens in (1, 2, 8, 9, 12, 64, 131):
        out = add(x[:tokens].clone(), weight, out=before[:tokens].clone(), int8_activations=True)
        assert error(out - before[:tokens], exact(in_bytes(x[:tokens], kind, implementation), weight)) < 1e-4, tokens
        assert torch.equal(out[:1], add(x[:1].clone(), weight, out=before[:1].clone(), int8_activations=True)), tokens
    assert 1e-4 < error(out - before, exact(x, weight)) < 2e-2


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_coarse_products_are_the_same_by_tiles_and_by_vectors(kind: str) -> None:
    """AMX and VNNI sum the same integers in the same places: many groups of tokens and blocks of columns, tails of both."""
    reasons = {row.name: row.why_not() for row in _C.implementations()}
    for name in ("amx", "avx512"):
        if (reason := reasons.get(name, "not in this build")) is not None:
            pytest.skip(f"{name}: {reason}")
    weight, x = matrix(kind, 75, 2300), torch.randn(700, 2300)
    tiles, vectors = (
        cpp_ops.op("linear_add", name)(x, weight, out=torch.zeros(700, 75), int8_activations=True)
        for name in ("amx", "avx512")
    )
    assert torch.equal(tiles, vectors)
    assert error(tiles, exact(in_bytes(x, kind, "amx"), weight)) < 1e-4


@pytest.mark.parametrize("coarse", [True, False])
def test_int4_products_have_equal_bits_in_every_set_that_fuses(coarse: bool) -> None:
    """Integer sums are exact, and each row's floats are added in one order, whatever the width of the vectors."""
    names = [row.name for row in _C.implementations() if row.name != "scalar" and row.why_not() is None]
    if len(names) < 2:
        pytest.skip(f"this machine has {len(names)} of the sets with fused multiply-adds")
    for rows, columns in ((75, 2300), (16, 32), (33, 544)):
        weight = matrix("int4", rows, columns)
        for tokens in (1, 3, 7, 270):
            x = torch.randn(tokens, columns)
            first, *others = (
                cpp_ops.op("linear_add", name)(x, weight, out=torch.zeros(tokens, rows), int8_activations=coarse)
                for name in names
            )
            assert all(torch.equal(first, other) for other in others), tokens


@pytest.mark.parametrize("coarse", [True, False])
def test_int4_rows_inside_panels(implementation: str, coarse: bool) -> None:
    """A part of a joined matrix, as gate and up are, may begin and end inside a panel of 16 rows."""
    weight = matrix("int4", 90, 300)
    for tokens in (1, 4, 20):
        x = torch.randn(tokens, 300)
        add = cpp_ops.op("linear_add", implementation)
        whole = add(x, weight, out=torch.zeros(tokens, 90), int8_activations=coarse)
        for begin, end in ((0, 90), (3, 90), (16, 40), (17, 18), (31, 70)):
            part = quantized.rows(weight, begin, end)
            found = add(x, part, out=torch.zeros(tokens, end - begin), int8_activations=coarse)
            assert torch.equal(found, whole[:, begin:end]), (tokens, begin, end)


@pytest.mark.parametrize("coarse", [True, False])
def test_int4_products_of_the_greatest_codes(implementation: str, coarse: bool) -> None:
    """Nothing is cut off where every weight and activation is at its limit, whatever the signs."""
    for code, scale, sign in itertools.product((0, 15), (-127, -126, 126, 127), (-1.0, 1.0)):
        values = torch.full((1, 8, 256), code * 17, dtype=torch.uint8)
        scales = torch.full((1, 8, 16), scale, dtype=torch.int8)
        weight = quantized.Int4Weight(values, scales, torch.ones(5), 256)
        x = torch.full((6, 256), sign)
        for tokens in (1, 6):
            out = torch.zeros(tokens, 5)
            found = cpp_ops.op("linear_add", implementation)(x[:tokens], weight, out=out, int8_activations=coarse)
            assert torch.allclose(found.double(), exact(x[:tokens], weight), rtol=1e-6)


def test_coarse_products_of_the_greatest_codes(implementation: str) -> None:
    """Nothing is cut off where every weight and activation is at its limit, whatever the signs."""
    for signs in (torch.ones(3, 256), -torch.ones(3, 256), torch.randn(3, 256).sign()):
        weight = quantized.Int8Weight((127 * signs).to(torch.int8), torch.ones(3))
        x = torch.cat([torch.ones(5, 256), -torch.ones(5, 256)])
        found = cpp_ops.op("linear_add", implementation)(x, weight, out=torch.zeros(10, 3), int8_activations=True)
        assert torch.allclose(found.double(), exact(x, weight), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(8, 8, 64), (8, 2, 16), (4, 4, 8), (6, 2, 128), (4, 1, 20), (2, 1, 96)]
)
@pytest.mark.parametrize("queries", [(1, 1, 1), (40, 7, 11), (1, 7, 100)])
def test_attention(implementation: str, heads: int, kv_heads: int, dim: int, queries: tuple[int, ...]) -> None:
    keys, values = torch.randn(2, 30, 16, kv_heads, dim)
    lens = torch.tensor([40, 7, 100], dtype=torch.int32)
    tables = torch.randperm(30)[:21].view(3, 7).int()
    starts = torch.tensor([0, queries[0], queries[0] + queries[1], sum(queries)], dtype=torch.int32)
    q = torch.randn(sum(queries), heads, dim)
    found = cpp_ops.op("attention", implementation)(q, keys, values, tables, starts, lens, dim**-0.5)
    wanted = reference.attention(q.double(), keys.double(), values.double(), tables, starts, lens, dim**-0.5)
    assert float((found - wanted).abs().max()) < 5e-6
    alone = cpp_ops.op("attention", implementation)(
        q[-1:].clone(), keys, values, tables[2:], torch.tensor([0, 1], dtype=torch.int32), lens[2:], dim**-0.5
    )
    assert torch.equal(alone[0], found[-1])  # neither neighbours nor earlier queries change a bit


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2)])
def test_later_values_that_are_not_finite_reach_no_earlier_query(
    implementation: str, heads: int, kv_heads: int
) -> None:
    keys, values = torch.randn(2, 3, 16, kv_heads, 32)
    values[1, 4:] = float("inf")  # tokens from 20 on
    keys[1, 7] = float("nan")  # token 23
    q, lens = torch.randn(40, heads, 32), torch.tensor([40], dtype=torch.int32)
    tables, starts = torch.arange(3, dtype=torch.int32)[None], torch.tensor([0, 40], dtype=torch.int32)
    found = cpp_ops.op("attention", implementation)(q, keys, values, tables, starts, lens, 0.2)
    wanted = reference.attention(q[:20], keys, values, tables, starts // 2, lens // 2, 0.2)
    assert torch.allclose(found[:20], wanted, atol=1e-5)
    assert not found[20:].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (6, 2, 20), (10, 10, 24)])
def test_attention_over_contexts_of_several_splits(
    implementation: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    """Decoding merges splits that were tasks of their own, a prompt's task goes through them: the bits are the same."""
    keys, values = torch.randn(2, 90, 16, kv_heads, dim).to(dtype)
    lens = torch.tensor([1300, 30, 513], dtype=torch.int32)
    tables = torch.randperm(90)[:84].repeat(3, 1).int()
    q = torch.randn(3, heads, dim)
    starts = torch.arange(4, dtype=torch.int32)
    attend = cpp_ops.op("attention", implementation)
    found = attend(q, keys, values, tables, starts, lens, dim**-0.5)
    wanted = reference.attention(q.double(), keys.double(), values.double(), tables, starts, lens, dim**-0.5)
    assert float((found - wanted).abs().max()) < 5e-6
    for n in range(3):
        prompt = torch.randn(100, heads, dim)
        prompt[-1] = q[n]
        queries = min(100, int(lens[n]))
        whole = attend(
            prompt[-queries:].clone(), keys, values, tables[n : n + 1], torch.tensor([0, queries], dtype=torch.int32),
            lens[n : n + 1], dim**-0.5,
        )  # fmt: skip
        assert torch.equal(whole[-1], found[n]), n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 32, 16), (4, 4, 64), (6, 2, 20), (20, 10, 24)])
def test_the_last_queries_of_a_context_are_those_that_follow_it_one_by_one(
    implementation: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    """As drafted tokens are verified: some of one sequence, alone or beside others, across the end of a split too."""
    keys, values = torch.randn(2, 40, 16, kv_heads, dim).to(dtype)
    tables = torch.randperm(40)[:33].repeat(2, 1).int()
    attend = cpp_ops.op("attention", implementation)
    for length, count in ((516, 2), (516, 8), (37, 4), (520, 9), (5, 5)):
        q, lens = torch.randn(count + 3, heads, dim), torch.tensor([length, 70], dtype=torch.int32)
        alone = torch.cat(
            [
                attend(
                    q[n : n + 1].clone(), keys, values, tables[:1], torch.arange(2, dtype=torch.int32),
                    lens[:1] - (count - 1 - n), dim**-0.5,
                )
                for n in range(count)
            ]
        )  # fmt: skip
        starts = torch.tensor([0, count, count + 3], dtype=torch.int32)
        together = attend(q[:count].clone(), keys, values, tables[:1], starts[:2], lens[:1], dim**-0.5)
        assert torch.equal(together, alone), (length, count)
        beside = attend(q, keys, values, tables, starts, lens, dim**-0.5)
        assert torch.equal(beside[:count], alone), (length, count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cache_takes_rounded_keys_and_values(implementation: str, dtype: torch.dtype) -> None:
    x, norm, weight = torch.randn(3, 64), torch.ones(64), torch.randn(96, 64) / 8
    angles = torch.rand(9, 8) * 6
    state = [(torch.zeros(3, 2, 16), *torch.zeros(2, 2, 16, 2, 16, dtype=kind)) for kind in (dtype, torch.float32)]
    for q, keys, values in state:
        cpp_ops.op("qkv_rope_store", implementation)(
            x, norm, 1e-5, [weight], angles.cos(), angles.sin(), torch.tensor([0, 4, 8]), keys, values,
            torch.tensor([31, 0, 17]), q=q,
        )  # fmt: skip
    for mine, wanted in zip(*state, strict=True):
        assert torch.equal(mine, wanted.to(mine.dtype))
        assert wanted.count_nonzero() == 3 * 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [2, 14, 16, 18, 46])
def test_narrowing_has_the_same_bits_in_all_rows(implementation: str, dtype: torch.dtype, dim: int) -> None:
    """Whole vectors and tails; a projection of ones by rows with one weight gives that weight to the bit."""
    bits = [0x7FC00000, 0xFFC00000, 0x7FC12345, 0xFFD54321, 0x7F800000, 0xFF800000, 0x477FEFFF, 0x477FF000,
            0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000, 0x33000000, 0x33000001, 0x33C00000, 0xB8800001]  # fmt: skip
    rows = torch.tensor([bits[n % 16] - (bits[n % 16] >> 31 << 32) for n in range(16 * dim)], dtype=torch.int32)
    values = rows.view(torch.float32)
    weight = torch.zeros(16 * dim, 16)
    weight[:, 0] = values
    none = torch.zeros(16 * dim, 16)
    keys, stored = torch.zeros(2, 1, 16, 16, dim).to(dtype)
    place, turn = torch.zeros(1, dtype=torch.int64), torch.ones(1, dim // 2)
    cpp_ops.op("qkv_rope_store", implementation)(
        torch.ones(1, 16), torch.ones(16), 0.0, [none, none, weight], turn, turn * 0, place, keys, stored, place,
        q=torch.zeros(1, 16, dim),
    )  # fmt: skip
    wanted = values.to(dtype)
    wanted[values.isnan()] = torch.tensor(float("nan"), dtype=dtype)
    quiet = {torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}[dtype]
    found = stored[0, 0].flatten().view(torch.int16)
    assert found.tolist() == torch.where(values.isnan(), quiet, wanted.view(torch.int16)).tolist()


def test_attention_of_far_scores(implementation: str) -> None:
    """One key that takes all, first or last: earlier sums are scaled to nothing, without a NaN."""
    for best in (0, 39):
        keys, values = torch.zeros(3, 16, 1, 16), torch.randn(3, 16, 1, 16)
        keys.view(48, 16)[best] = 200.0
        found = cpp_ops.op("attention", implementation)(
            torch.ones(1, 1, 16), keys, values, torch.tensor([[0, 1, 2]], dtype=torch.int32),
            torch.tensor([0, 1], dtype=torch.int32), torch.tensor([40], dtype=torch.int32), 0.25,
        )  # fmt: skip
        assert torch.allclose(found.flatten(), values.view(48, 16)[best])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("apart", [True, False])
def test_fused_ops(implementation: str, kind: str, tokens: int, apart: bool) -> None:
    hidden, heads, kv_heads, dim, inner, vocabulary = 96, 4, 2, 24, 70, 77
    x, norm = torch.randn(tokens, hidden), 1 + torch.randn(hidden) * 0.1
    parts = [matrix(kind, rows * dim, hidden) for rows in (heads, kv_heads, kv_heads)]
    weights = parts if apart else [quantized.join(parts)]
    angles = torch.rand(50, dim // 2) * 6
    positions, slots = torch.randperm(50)[:tokens], torch.randperm(64)[:tokens]
    state = [[torch.zeros(tokens, heads, dim), *torch.zeros(2, 4, 16, kv_heads, dim)] for _ in range(2)]
    for run, (q, keys, values) in zip(
        (cpp_ops.op("qkv_rope_store", implementation), reference.qkv_rope_store), state, strict=True
    ):
        run(x, norm, 1e-5, weights, angles.cos(), angles.sin(), positions, keys, values, slots, q=q)
    for mine, wanted in zip(*state, strict=True):
        assert error(mine, wanted.double()) < 4e-5
    gates = [matrix(kind, inner, hidden) for _ in range(2)]
    gates = gates if apart else [quantized.join(gates)]
    mine, wanted = torch.empty(2, tokens, inner)
    cpp_ops.op("gate_up", implementation)(x, norm, 1e-5, gates, out=mine)
    reference.gate_up(x, norm, 1e-5, gates, out=wanted)
    assert error(mine, wanted.double()) < 6e-5
    mine, wanted = torch.empty(2, tokens, vocabulary)
    best = torch.empty(tokens, 3, dtype=torch.int32)
    last = matrix(kind, vocabulary, hidden)
    cpp_ops.op("head", implementation)(x, norm, 1e-5, last, out=mine, best=best)
    reference.head(x, norm, 1e-5, last, out=wanted)
    assert error(mine, wanted.double()) < 4e-5
    padded = torch.nn.functional.pad(mine, (0, 19), value=float("-inf")).view(tokens, 3, 32)
    assert torch.equal(best.long(), padded.argmax(2) + torch.arange(3) * 32)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_fused_ops_of_prompts(implementation: str, kind: str) -> None:
    """The products of matrices side by side with activations in bytes are those of linear_add, to the bit."""
    hidden, heads, dim, inner, tokens = 200, 3, 16, 70, 12
    x, ones = torch.randn(tokens, hidden), torch.ones(hidden)
    normed = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)
    parts = [matrix(kind, heads * dim, hidden) for _ in range(3)]
    still = torch.ones(tokens, dim // 2), torch.zeros(tokens, dim // 2)  # no rotation
    q, keys, values = torch.zeros(tokens, heads, dim), *torch.zeros(2, 1, 16, heads, dim)
    where = torch.arange(tokens)
    cpp_ops.op("qkv_rope_store", implementation)(
        x, ones, 1e-5, parts, *still, where, keys, values, where, q=q, int8_activations=True
    )  # fmt: skip
    for found, weight in zip((q, keys[0, :tokens], values[0, :tokens]), parts, strict=True):
        assert (
            error(found.flatten(1), exact(in_bytes(normed, kind, implementation), weight)) < 3e-3
        )  # a code may fall to the other side
    gates = [matrix(kind, inner, hidden) for _ in range(2)]
    found = cpp_ops.op("gate_up", implementation)(
        x, ones, 1e-5, gates, out=torch.empty(tokens, inner), int8_activations=True
    )
    gate, up = (exact(in_bytes(normed, kind, implementation), weight) for weight in gates)
    assert error(found, torch.nn.functional.silu(gate) * up) < 3e-3


@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_so(implementation: str, kind: str, bad: float) -> None:
    x = torch.randn(2, 128)
    x[1, 70] = bad
    weight = matrix(kind, 40, 128)
    found = cpp_ops.op("linear_add", implementation)(x, weight, out=torch.zeros(2, 40))
    assert torch.isfinite(found[0]).all()
    assert not torch.isfinite(found[1]).any()
    many = torch.cat([torch.randn(9, 128), x])
    int8_activations = cpp_ops.op("linear_add", implementation)(
        many, weight, out=torch.zeros(11, 40), int8_activations=True
    )
    assert torch.isfinite(int8_activations[:10]).all()
    assert not torch.isfinite(int8_activations[10]).any()
    norm, best = torch.ones(128), torch.empty(2, 2, dtype=torch.int32)
    cpp_ops.op("head", implementation)(x, norm, 1e-5, weight, out=torch.empty(2, 40), best=best)
    assert (best[0] >= 0).all()
    assert (best[1] == reference.NO_TOKEN).all()
