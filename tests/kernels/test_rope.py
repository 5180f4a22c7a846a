"""Rotation and the write to the paged cache through the interpreter: against a float64 oracle, and nothing beside the slots."""

from __future__ import annotations

import oracles
import pytest
import torch
from interpreter import Interpreter
from product_inputs import ACTIVATIONS, rand

from baize_engine.kernels import reference


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "dim"), [(1, 4, 4, 8), (5, 6, 2, 24), (3, 20, 20, 64)])
def test_rope_and_store(triton: Interpreter, rows: int, heads: int, kv_heads: int, dim: int, activation: str) -> None:
    dtype = ACTIVATIONS[activation]
    parts = rand(rows, (heads + 2 * kv_heads) * dim, seed=3, dtype=dtype)
    angle = torch.arange(40)[:, None] * torch.arange(1, dim // 2 + 1)[None, :] / 7
    cos, sin = angle.cos(), angle.sin()
    positions = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:rows]
    slots = torch.randperm(3 * 16, generator=torch.Generator().manual_seed(2))[:rows]
    q = torch.full((rows, heads, dim), float("nan"), dtype=dtype)
    k_cache, v_cache = (torch.full((3, 16, kv_heads, dim), 7.0, dtype=dtype) for _ in range(2))
    _, after = triton.call("rope", "rope_and_store", parts, cos, sin, positions, k_cache, v_cache, slots, q=q)
    got_k, got_v, got_q = after[4].flatten(0, 1), after[5].flatten(0, 1), after[7]

    split = parts.unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], dim=1)
    plain_q, plain_k, plain_v = split[0].clone(), k_cache.clone(), v_cache.clone()
    reference.rope_and_store(plain_q, split[1].clone(), split[2], cos, sin, positions, plain_k, plain_v, slots)
    oracles.no_worse(got_q, plain_q, oracles.rope(split[0], cos, sin, positions))
    oracles.no_worse(got_k[slots], plain_k.flatten(0, 1)[slots], oracles.rope(split[1], cos, sin, positions))
    assert torch.equal(got_v[slots], split[2])
    others = torch.ones(3 * 16, dtype=torch.bool)
    others[slots] = False
    assert bool((got_k[others] == 7.0).all())
    assert bool((got_v[others] == 7.0).all())


def test_wrong_shapes_are_named(triton: Interpreter) -> None:
    cache = torch.zeros(1, 16, 2, 8)
    state = (torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(1).long(), cache, cache.clone(), torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"parts has shape \(1, 56\), wanted contiguous \(1, 64\)"):
        triton.call("rope", "rope_and_store", torch.zeros(1, 56), *state, q=torch.zeros(1, 4, 8))
