"""Choosing tokens through the interpreter: the reference's choice for every filter, and the state of the next step."""

from __future__ import annotations

import pytest
import torch
from interpreter import Interpreter
from sample_inputs import FILTERS, ROWS, arguments, logits, state

from baize_engine.kernels import reference


@pytest.mark.parametrize("vocabulary", [97, 4100])
@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_the_references_choice(triton: Interpreter, chosen: dict[str, float], vocabulary: int) -> None:
    rows, call = logits(vocabulary), arguments(**chosen)
    got, _ = triton.call("sample", "sample", rows, *call.values())
    assert got.tolist() == reference.sample(rows, **call).tolist()


@pytest.mark.parametrize("top_k", [2, 63, 64, 65])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_where_the_greatest_lie_does_not_matter(triton: Interpreter, top_k: int, top_p: float) -> None:
    """All in few blocks, one in each, equals across more blocks than are looked at, and equals within them."""
    rows = logits(4100, scale=1.0)
    rows[0, 64:96] += 9  # a whole block
    rows[1, 5::61] += 9  # one of nearly every block
    rows[2] = 1.5  # all
    rows[3, ::40] = 7.0  # equals of more than 64 blocks
    rows[4, :70] = 7.0  # equals of three blocks
    rows[5, 4096:] += 9  # the last block, which is not full
    rows[6] = rows[6].sort().values
    rows[7] = rows[7].sort(descending=True).values
    for seed in range(3):
        call = arguments(seed=seed * 999, top_k=top_k, top_p=top_p)
        got, _ = triton.call("sample", "sample", rows, *call.values())
        assert got.tolist() == reference.sample(rows, **call).tolist()


def test_rows_have_their_own_parameters(triton: Interpreter) -> None:
    rows = logits(300)
    call = arguments()
    call["temperature"] = torch.tensor([0.0, 1.0, 0.5] * 4)
    call["top_k"] = torch.tensor([0, 5, 0, 1] * 3)
    call["top_p"] = torch.tensor([1.0, 0.5, 0.9, 1.0, 0.3, 1.0] * 2)
    got, _ = triton.call("sample", "sample", rows, *call.values())
    assert got.tolist() == reference.sample(rows, **call).tolist()
    alone = [
        triton.call("sample", "sample", rows[r : r + 1], *(v[r : r + 1] for v in call.values()))[0] for r in range(ROWS)
    ]
    assert torch.cat(alone).tolist() == got.tolist()


def test_equals_of_the_last_one_kept_are_kept(triton: Interpreter) -> None:
    """top_k 2 over one best and three equal seconds leaves four to draw from; draws over many seeds show them all."""
    row = torch.full((1, 40), -50.0)
    row[0, [3, 17, 30]], row[0, 5] = 1.0, 1.5
    seen = set()
    for seed in range(0, 60, ROWS):
        call = arguments(seed=seed * 1000, top_k=2)
        got, _ = triton.call("sample", "sample", row.expand(ROWS, 40).contiguous(), *call.values())
        assert got.tolist() == reference.sample(row.expand(ROWS, 40), **call).tolist()
        seen |= set(got.tolist())
    assert seen == {3, 5, 17, 30}


def test_greedy_takes_the_first_of_equals(triton: Interpreter) -> None:
    rows = torch.zeros(2, 200)
    rows[0, [40, 41, 150]] = 2.0
    rows[1, 199] = 1.0
    got, _ = triton.call("sample", "sample", rows, *arguments(2, temperature=0.0).values())
    assert got.tolist() == [40, 199]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_no_token(triton: Interpreter, bad: float) -> None:
    rows = logits(100, 2)
    rows[1, 70] = bad
    got, _ = triton.call("sample", "sample", rows, *arguments(2).values())
    assert got[0] == reference.sample(rows[:1], **{k: v[:1] for k, v in arguments(2).items()})[0]
    assert got[1] == -1


def test_a_row_whose_greatest_is_not_finite_when_divided_has_no_token(triton: Interpreter) -> None:
    rows, call = torch.full((2, 40), 3e38), arguments(2)
    call["temperature"] = torch.tensor([1.0, 0.5])
    got, _ = triton.call("sample", "sample", rows, *call.values())
    assert got[0] >= 0
    assert got.tolist() == reference.sample(rows, **call).tolist() == [int(got[0]), -1]


def test_the_draw_follows_the_distribution(triton: Interpreter) -> None:
    """Chi-square over 600 draws from four tokens: 3 degrees of freedom, 21.1 is passed once in 10,000; seeds are fixed."""
    row = torch.tensor([[0.0, 0.7, -0.5, 1.2]]).repeat(600, 1)
    got, _ = triton.call("sample", "sample", row, *arguments(600, seed=5).values())
    wanted = row[0].softmax(0) * 600
    found = torch.bincount(got, minlength=4)
    assert float(((found - wanted).square() / wanted).sum()) < 21.1


def test_embed(triton: Interpreter) -> None:
    weight = torch.randn(50, 72).half()
    got, _ = triton.call("sample", "embed", torch.tensor([3, 49, 0, -1]), weight)
    assert torch.equal(got, weight[[3, 49, 0, 0]])


@pytest.mark.parametrize("tokens", [[10, 20, 30, 40], [2, 20, 30, 11], [-1, -1, -1, -1]])
def test_advance(triton: Interpreter, tokens: list[int]) -> None:
    chosen, wanted = torch.tensor(tokens), state()
    reference.advance(chosen, *wanted, 16)
    _, got = triton.call("sample", "advance", chosen, *state(), 16)
    for mine, its in zip(got[1:], wanted, strict=False):
        assert torch.equal(mine, its)


def test_the_reference_advances_as_written() -> None:
    ids, positions, slots, lens, left, stops, tables = state()
    reference.advance(torch.tensor([10, 2, 30, 40]), ids, positions, slots, lens, left, stops, tables, 16)
    assert ids.tolist() == [10, 51, 52, 40]  # row 1 stopped, row 2 had one token left
    assert positions.tolist() == [16, 31, 3, 21]
    assert slots.tolist() == [32, 7 * 16 + 15, 5 * 16 + 3, 8 * 16 + 5]
    assert lens.tolist() == [17, 32, 4, 22]
    assert left.tolist() == [4, 0, 0, 8]
