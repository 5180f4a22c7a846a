"""The buffers of a run: rows that kernels can read, rows of the cache, and views of the first tokens."""

from __future__ import annotations

import pytest
import tiny
import torch

from baize_engine.model.buffers import Activations, Inputs, aligned_rows, cache_slots
from baize_engine.model.config import ModelConfig


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_every_row_begins_at_a_multiple_of_16_bytes(length: int, dtype: torch.dtype) -> None:
    rows = aligned_rows(5, length, dtype, "cpu")
    assert rows.shape == (5, length)
    assert rows.count_nonzero() == 0
    assert all(row.data_ptr() % 16 == 0 for row in rows)


def test_slots_are_numbered_across_the_cache() -> None:
    assert cache_slots([7, 2, 4], 16, 14, 18) == [7 * 16 + 14, 7 * 16 + 15, 2 * 16, 2 * 16 + 1]
    assert cache_slots([7, 2, 4], 16, 0, 48) == [
        *range(7 * 16, 8 * 16), *range(2 * 16, 3 * 16), *range(4 * 16, 5 * 16),
    ]  # fmt: skip
    assert cache_slots([7], 16, 3, 3) == []


def test_the_first_tokens_are_views() -> None:
    """What a step writes to them is read by the plan that holds the whole buffers, and the other way round."""
    config = ModelConfig.from_dict(tiny.config(num_key_value_heads=2))
    whole = Activations.of(config, 6, torch.float32, "cpu")
    heads = (6, config.num_heads, config.head_dim)
    shapes = [tuple(each.shape) for each in (whole.x, whole.q, whole.mixed, whole.inner)]
    assert shapes == [(6, config.hidden_size), heads, heads, (6, config.intermediate_size)]
    part = whole.first(2)
    for name in ("x", "q", "mixed", "inner"):
        mine, all_ = getattr(part, name), getattr(whole, name)
        assert mine.shape == (2, *all_.shape[1:])
        assert mine.data_ptr() == all_.data_ptr()


def test_the_first_inputs_have_one_start_more_than_sequences() -> None:
    whole = Inputs(
        torch.arange(9), torch.arange(9), torch.arange(9), torch.zeros(3, 5).int(), torch.tensor([0, 4, 7, 9]).int(),
        torch.tensor([4, 3, 2]).int(), 64,
    )  # fmt: skip
    part = whole.first(7, 2, 32)
    assert (part.ids.tolist(), part.positions.numel(), part.slots.numel()) == (list(range(7)), 7, 7)
    assert (part.block_tables.shape, part.query_starts.tolist()) == ((2, 5), [0, 4, 7])
    assert (part.context_lens.tolist(), part.max_context) == ([4, 3], 32)
    assert part.ids.data_ptr() == whole.ids.data_ptr()
