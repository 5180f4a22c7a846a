"""The reference ops against float64 oracles written here, and the counter hash that every backend must share."""

from __future__ import annotations

import math

import pytest
import torch
from diff_oracle import DTYPES, as_bytes, bits, draw, oracle, same
from tolerances import OP_FLOAT32

from baize_engine.kernels import reference

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, wanted: torch.Tensor, bound: float = OP_FLOAT32) -> None:
    assert got.shape == wanted.shape
    assert (got.double() - wanted).abs().max() <= bound * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("diff", DTYPES)
@pytest.mark.parametrize("base", DTYPES)
def test_diff_add_is_the_oracles(base: str, diff: str, out: str, subtract: bool) -> None:
    left, right = draw(70001, DTYPES[base], 1), draw(70001, DTYPES[diff], 2)
    left[5], right[6] = float("nan"), float("inf")
    got, stats = reference.diff_add(left, right, DTYPES[out], subtract=subtract)
    wanted, sums, overflowed, nonfinite = oracle(left, right, out, subtract)
    assert as_bytes(got) == wanted
    assert same(stats.chunk_sums.tolist(), sums)
    assert (stats.overflowed, stats.nonfinite) == (overflowed, nonfinite)


def test_diff_add_refuses_by_name() -> None:
    with pytest.raises(ValueError, match=r"base is torch\.int32"):
        reference.diff_add(torch.zeros(2, dtype=torch.int32), torch.zeros(2), torch.float16)
    with pytest.raises(ValueError, match=r"base has shape \(2,\), diff \(3,\)"):
        reference.diff_add(torch.zeros(2), torch.zeros(3), torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_its_rows(dtype: str) -> None:
    x, weight = rand(5, 96), rand(70, 96, seed=1).to(DTYPES[dtype])
    wanted = x.double() @ weight.double().T
    close(reference.linear(x, weight), wanted)
    rows = reference.linear(x, weight, batch_invariant=True)
    close(rows, wanted)
    for t in range(5):
        assert torch.equal(reference.linear(x[t : t + 1], weight, batch_invariant=True), rows[t : t + 1])


def test_segment_sums_and_the_residual() -> None:
    x, weight, before = rand(3, 4 * 37), rand(4 * 21, 37, seed=1), rand(3, 21, seed=2)
    wanted = sum(x[:, s * 37 : (s + 1) * 37].double() @ weight[s * 21 : (s + 1) * 21].double().T for s in range(4))
    sums = reference.segment_sums(x, weight, segments=4, out=torch.empty(3, 21))
    close(sums, wanted)
    out = before.clone()
    assert reference.add_sums(sums[None], out=out) is out
    close(out, before.double() + wanted)


def test_where_a_matrix_begins_does_not_show() -> None:
    """torch's library sums in another order where memory begins off a line; a rank's part may begin anywhere."""
    x, norm, memory = rand(1, 688), torch.ones(688), rand(24 * 688 + 16, seed=1)
    found = []
    for begin in range(16):
        weight = memory[begin : begin + 24 * 688].view(24, 688)
        weight.copy_(rand(24, 688, seed=2))
        found.append(reference.head(x, norm, 1e-5, weight, out=torch.empty(1, 24), units=2))
        found.append(reference.head(x, norm, 1e-5, weight, out=torch.empty(1, 24), units=2, batch_invariant=True))
    assert all(torch.equal(each, found[n % 2]) for n, each in enumerate(found))


def test_linear_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = rand(3, 64), rand(50, 64, seed=1).half()
    monkeypatch.setattr(reference, "WIDENED_BYTES", 64 * 4 * 7)
    close(reference.linear(x, weight), x.double() @ weight.double().T)


def test_rms_norm() -> None:
    x, weight = rand(4, 100), rand(100, seed=1).half()
    wide = x.double()
    close(
        reference.rms_norm(x, weight, 1e-5), wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    )


def test_silu_mul_and_add_write_where_told() -> None:
    gate, up = rand(3, 50), rand(3, 50, seed=1)
    wanted = gate.double() * gate.double().sigmoid() * up.double()
    close(reference.silu_mul(gate, up), wanted)
    assert reference.silu_mul(gate, up, out=gate) is gate
    close(gate, wanted)
    x = rand(3, 50, seed=2)
    wanted = x.double() + up.double()
    assert reference.add(x, up, out=x) is x
    close(x, wanted)


def test_embed_widens_on_the_cpu() -> None:
    weight = rand(9, 4).half()
    got = reference.embed(torch.tensor([3, 0, 3]), weight)
    assert got.dtype == torch.float32
    assert torch.equal(got, weight[[3, 0, 3]].float())


def test_rope_rotates_halves_and_fills_the_cache() -> None:
    tokens, dim = 5, 8
    q, k, v = rand(tokens, 4, dim), rand(tokens, 2, dim, seed=1), rand(tokens, 2, dim, seed=2)
    angle = torch.arange(10, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 9])
    slots = torch.tensor([3, 4, 9, 0, 11])
    keys, values = torch.zeros(3, 4, 2, dim), torch.zeros(3, 4, 2, dim)

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())  # a half pair is a complex number, turned
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)[positions][:, None]
        return torch.cat([pairs.real, pairs.imag], -1)

    wanted_q, wanted_k = turned(q), turned(k)
    reference.rope_and_store(q, k, v, angle.cos().float(), angle.sin().float(), positions, keys, values, slots)
    close(q, wanted_q)
    close(keys.flatten(0, 1)[slots], wanted_k)
    assert torch.equal(values.flatten(0, 1)[slots], v)
    untouched = [row for row in range(12) if row not in slots.tolist()]
    assert keys.flatten(0, 1)[untouched].abs().max() == 0


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_attention_over_scattered_blocks(heads: tuple[int, int]) -> None:
    many, few = heads
    dim, block, counts, lens = 8, 4, [3, 1, 6], [3, 9, 13]
    keys, values = rand(12, block, few, dim, seed=1), rand(12, block, few, dim, seed=2)
    tables = torch.tensor([[7, 0, 0, 0], [1, 5, 2, 0], [11, 3, 8, 6]], dtype=torch.int32)
    q = rand(sum(counts), many, dim)
    starts = torch.tensor([0, 3, 4, 10])
    got = reference.attention(q, keys, values, tables, starts, torch.tensor(lens), dim**-0.5)
    for s, (count, length) in enumerate(zip(counts, lens, strict=True)):
        k = keys[tables[s].long()].flatten(0, 1)[:length].double()
        v = values[tables[s].long()].flatten(0, 1)[:length].double()
        for n in range(count):
            row, seen = int(starts[s]) + n, length - count + n + 1
            for h in range(many):
                kh = h // (many // few)
                weights = (k[:seen, kh] @ q[row, h].double() * dim**-0.5).softmax(0)
                close(got[row, h], weights @ v[:seen, kh])


def test_the_hash_is_fixed() -> None:
    """Against lowbias32 in plain integers: a backend that computes anything else draws other tokens for the same seed."""
    assert reference.mix(torch.tensor([0, 1, 0xFFFFFFFF])).tolist() == [mix_of(x) for x in (0, 1, 0xFFFFFFFF)]
    u = reference.uniform(
        torch.tensor([7, 7 + (1 << 32)]), torch.tensor([0, 0]), torch.tensor([5, 5]), torch.arange(1000)
    )
    assert u.min() > 0
    assert u.max() < 1
    assert not torch.equal(u[0], u[1])  # the upper half of a seed counts


def mix_of(x: int) -> int:
    """lowbias32 in plain integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seeds = torch.arange(64)
    u = reference.uniform(seeds, torch.zeros(64, dtype=torch.int64), torch.full((64,), 9), torch.arange(4096)).double()
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * u.numel())
    counts = torch.histc(u, 64, 0, 1)
    assert float(((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum()) < 64 + 5 * math.sqrt(128)
    for other in (u[1:], u[:, 1:]):
        first = u[: other.shape[0], : other.shape[1]]
        assert abs(float(((first - 0.5) * (other - 0.5)).mean())) < 5 / 12 / math.sqrt(other.numel())


def test_sampling_rows_do_not_see_each_other() -> None:
    logits = rand(6, 300) * 3
    arguments = [
        torch.tensor([0.0, 0.7, 1.0, 1.5, 1.0, 0.3]), torch.tensor([0, 5, 0, 50, 1, 0]),
        torch.tensor([1.0, 1.0, 0.5, 0.9, 1.0, 1e-6]), torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.0]),
        torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 0, 0, 0]), torch.tensor([10, 11, 12, 13, 14, 15]),
    ]  # fmt: skip
    together = reference.sample(logits, *arguments)
    for row in range(6):
        alone = reference.sample(logits[row : row + 1], *(each[row : row + 1] for each in arguments))
        assert int(alone) == int(together[row])
    best = logits.argmax(-1)
    assert [int(together[row]) for row in (0, 4, 5)] == [int(best[row]) for row in (0, 4, 5)]


def test_bits_helper_sees_signed_zero() -> None:
    assert not torch.equal(bits(torch.tensor([0.0])), bits(torch.tensor([-0.0])))
