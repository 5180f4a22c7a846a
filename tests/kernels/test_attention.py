"""Attention over the paged cache through the interpreter: decode in splits and prefill in tiles, against float64."""

from __future__ import annotations

import oracles
import pytest
import torch
from attention_inputs import paged
from interpreter import Interpreter

from baize_engine.kernels import reference

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def judge(triton: Interpreter, case: tuple[torch.Tensor, ...], scale: float) -> torch.Tensor:
    q, k, v, tables, starts, lens = case
    out = torch.full_like(q, float("nan"))
    got, _ = triton.call("attention", "attention", q, k, v, tables, starts, lens, scale, out=out)
    plain = reference.attention(q, k, v, tables, starts, lens, scale)
    oracles.no_worse(got, plain, oracles.attention(q, k, v, tables, starts, lens, scale))
    return got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "lens"),
    [(4, 4, 16, [1]), (4, 2, 8, [300, 5, 256]), (6, 1, 24, [17, 257]), (2, 2, 128, [64, 520])],
)
def test_decode(triton: Interpreter, heads: int, kv_heads: int, dim: int, lens: list[int], kind: str) -> None:
    judge(triton, paged([1] * len(lens), lens, heads, kv_heads, dim, KINDS[kind]), dim**-0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "counts", "lens"),
    [
        (2, 2, 16, [40], [40]),
        (4, 2, 8, [33], [100]),
        (2, 1, 24, [5, 150], [5, 200]),
        (1, 1, 128, [130], [131]),
    ],
)
def test_prefill(
    triton: Interpreter, heads: int, kv_heads: int, dim: int, counts: list[int], lens: list[int], kind: str
) -> None:
    judge(triton, paged(counts, lens, heads, kv_heads, dim, KINDS[kind]), dim**-0.5)


def test_large_scores_do_not_overflow(triton: Interpreter) -> None:
    q, *rest = paged([1, 1], [30, 270], 2, 2, 16, torch.float16)
    judge(triton, (q * 50, *rest), 1.0)


def test_a_sequence_does_not_depend_on_its_neighbours(triton: Interpreter) -> None:
    """Nor on how long the longest context is, which sets the number of splits."""
    q, k, v, tables, starts, lens = paged([1, 1, 1], [270, 40, 600], 4, 2, 16, torch.float16)
    together, _ = triton.call("attention", "attention", q, k, v, tables, starts, lens, 0.25)
    for s in range(3):
        alone, _ = triton.call(
            "attention", "attention", q[s : s + 1], k, v, tables[s : s + 1], starts[:2], lens[s : s + 1], 0.25
        )
        assert torch.equal(alone, together[s : s + 1])


def test_a_bound_on_the_context_changes_nothing(triton: Interpreter) -> None:
    """Captured graphs launch for the longest context there may be."""
    case = paged([1, 1], [270, 40], 4, 2, 16, torch.float16)
    exact, _ = triton.call("attention", "attention", *case, 0.25)
    bounded, _ = triton.call("attention", "attention", *case, 0.25, max_context=2048)
    assert torch.equal(exact, bounded)


def test_a_context_over_the_bound_is_cut_and_reads_nothing_of_others(triton: Interpreter) -> None:
    """No part beyond those that were launched: the row in bounds is as ever, the others as if cut to the two splits."""
    q, k, v, tables, starts, lens = paged([1, 1, 1], [700, 40, 400], 4, 2, 16, torch.float16)
    bounded, _ = triton.call("attention", "attention", q, k, v, tables, starts, lens, 0.25, max_context=256)
    cut, _ = triton.call("attention", "attention", q, k, v, tables, starts, lens.clamp(max=256), 0.25)
    assert torch.equal(bounded, cut)


def test_prefill_in_chunks_of_a_tile_is_prefill_at_once(triton: Interpreter) -> None:
    q, k, v, tables, starts, lens = paged([200], [200], 2, 2, 16, torch.float16)
    whole, _ = triton.call("attention", "attention", q, k, v, tables, starts, lens, 0.25)
    first = (q[:128].contiguous(), k, v, tables, torch.tensor([0, 128]), torch.tensor([128]), 0.25)
    last = (q[128:].contiguous(), k, v, tables, torch.tensor([0, 72]), torch.tensor([200]), 0.25)
    parts = [triton.call("attention", "attention", *part)[0] for part in (first, last)]
    assert torch.equal(torch.cat(parts), whole)


def test_wrong_shapes_are_named(triton: Interpreter) -> None:
    q, k, v, tables, starts, lens = paged([1], [20], 4, 2, 16, torch.float16)
    with pytest.raises(ValueError, match=r"v_cache has shape"):
        triton.call("attention", "attention", q, k, v[:1], tables, starts, lens, 1.0)
    with pytest.raises(ValueError, match="q has 3 heads, wanted a multiple of the cache's 2"):
        triton.call("attention", "attention", q[:, :3].contiguous(), k, v, tables, starts, lens, 1.0)
