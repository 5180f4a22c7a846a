"""Choosing tokens in C++: the reference's choice for every filter and instruction set, and the state of the next step."""

from __future__ import annotations

import pytest
import torch
from implementations import IMPLEMENTATIONS
from sample_inputs import FILTERS, ROWS, arguments, logits, state

from baize_engine.backend import cpp_ops
from baize_engine.kernels import reference


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def best_of_blocks(rows: torch.Tensor) -> torch.Tensor:
    """What `head` leaves for logits that have no equals."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 32), value=float("-inf")).unflatten(1, (-1, 32))
    ids = padded.argmax(2) + torch.arange(padded.shape[1]) * 32
    broken = (~torch.isfinite(rows)).nonzero().tolist()
    for row, column in broken:
        ids[row, column // 32] = reference.NO_TOKEN
    return ids.int()


def same(implementation: str, rows: torch.Tensor, call: dict[str, torch.Tensor]) -> list[int]:
    """The ids of both, with and without the greatest of blocks, which must be the same."""
    wanted = reference.sample(rows, **call).tolist()
    assert cpp_ops.op("sample", implementation)(rows, **call).tolist() == wanted
    assert cpp_ops.op("sample", implementation)(rows, **call, best=best_of_blocks(rows)).tolist() == wanted
    return wanted


MORE = [
    {"top_k": 129}, {"top_k": 3000, "top_p": 0.99}, {"top_p": 0.999999}, {"top_p": 1e-6}, {"min_p": 1.0},
    {"temperature": 1e-4}, {"temperature": 40.0, "top_p": 0.5}, {"top_k": 500, "min_p": 1e-3, "temperature": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("vocabulary", [1, 31, 97, 4100, 32000])
@pytest.mark.parametrize("chosen", [*FILTERS, *MORE], ids=str)
def test_the_references_choice(implementation: str, chosen: dict[str, float], vocabulary: int) -> None:
    for seed, scale in enumerate((3.0, 0.01, 30.0)):
        same(implementation, logits(vocabulary, scale=scale, seed=seed), arguments(seed=seed * 1000, **chosen))


@pytest.mark.parametrize("chosen", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_many_seeds(implementation: str, chosen: dict[str, float]) -> None:
    row = logits(1000, 1, scale=1.5)
    for seed in range(4):
        call = arguments(500, seed=seed * 99991, **chosen)
        assert len(set(same(implementation, row.expand(500, 1000).contiguous(), call))) > 5


def test_values_of_one_step_have_many_equals(implementation: str) -> None:
    """Logits rounded to eighths: thresholds fall among equals, of which all are kept."""
    rows = (logits(3000) * 8).round() / 8
    for chosen in ({"top_k": 7}, {"top_k": 700}, {"top_p": 0.3}, {"top_p": 0.95}, {"top_k": 90, "top_p": 0.5}):
        same(implementation, rows, arguments(**chosen))
    for chosen in ({"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.25}, {"top_p": 0.9}, {"min_p": 0.9}):
        same(implementation, torch.full((ROWS, 600), -2.5), arguments(**chosen))
        same(implementation, torch.zeros(ROWS, 600), arguments(**chosen))
    zeros = torch.zeros(ROWS, 600)
    zeros[:, ::2] *= -1.0
    assert reference.sample(zeros, **arguments(temperature=0.0)).tolist() == [0] * ROWS
    assert cpp_ops.op("sample", implementation)(zeros, **arguments(temperature=0.0)).tolist() == [0] * ROWS


def test_far_values(implementation: str) -> None:
    """One token that takes all, two that share it, and logits up to the ends of float32."""
    rows = torch.full((ROWS, 400), -3e38)
    rows[:, 300] = 3e38
    rows[6:, 77] = 3e38
    for chosen in (
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"top_p": 0.4},
        {"top_k": 3},
        {"top_k": 300},
        {"min_p": 0.5},
    ):
        found = set(same(implementation, rows, arguments(**chosen)))
        assert found <= {77, 300} if chosen.get("temperature") != 0.5 else found == {reference.NO_TOKEN}


def test_rows_have_their_own_parameters(implementation: str) -> None:
    rows, call = logits(300), arguments()
    call["temperature"] = torch.tensor([0.0, 1.0, 0.5] * 4)
    call["top_k"] = torch.tensor([0, 5, 0, 1] * 3)
    call["top_p"] = torch.tensor([1.0, 0.5, 0.9, 1.0, 0.3, 1.0] * 2)
    together = same(implementation, rows, call)
    alone = [same(implementation, rows[r : r + 1], {k: v[r : r + 1] for k, v in call.items()}) for r in range(ROWS)]
    assert [ids[0] for ids in alone] == together
    call["positions"] = call["positions"].int()  # as a step has them
    assert cpp_ops.op("sample", implementation)(rows, **call).tolist() == together


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 70, 99])
def test_a_row_that_is_not_finite_has_no_token(implementation: str, bad: float, where: int) -> None:
    rows = logits(100, 3)
    rows[1, where] = bad
    for chosen in ({}, {"temperature": 0.0}, {"top_k": 5}):
        ids = same(implementation, rows, arguments(3, **chosen))
        assert [number == reference.NO_TOKEN for number in ids] == [False, True, False]


@pytest.mark.parametrize("tokens", [[10, 20, 30, 40], [2, 20, 30, 11], [-1, -1, -1, -1]])
def test_advance(implementation: str, tokens: list[int]) -> None:
    wanted, mine = state(), state()
    reference.advance(torch.tensor(tokens), *wanted, 16)
    cpp_ops.op("advance", implementation)(torch.tensor(tokens), *mine, 16)
    for found, right in zip(mine, wanted, strict=True):
        assert torch.equal(found, right)


def test_a_table_without_the_next_block_is_refused(implementation: str) -> None:
    places = state()
    places[1][1] = 47
    with pytest.raises(IndexError, match="position 48 of row 1 is in block 3, and its table has 3"):
        cpp_ops.op("advance", implementation)(torch.tensor([10, 20, 30, 40]), *places, 16)


def test_wrong_tensors_are_refused_by_name(implementation: str) -> None:
    call = arguments()
    with pytest.raises(ValueError, match=r"logits is torch\.float16"):
        cpp_ops.op("sample", implementation)(logits(50).half(), **call)
    with pytest.raises(ValueError, match=r"top_k is torch\.int32"):
        cpp_ops.op("sample", implementation)(logits(50), **{**call, "top_k": call["top_k"].int()})
    with pytest.raises(ValueError, match="logits have 524289 columns, wanted 1 to 524288"):
        cpp_ops.op("sample", implementation)(torch.zeros(1, (1 << 19) + 1), **arguments(1))
