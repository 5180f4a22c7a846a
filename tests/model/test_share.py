"""What a rank holds: its sizes, and the numbers of ranks that fit a model."""

from __future__ import annotations

import pytest
import tiny

from baize_engine.errors import ConfigError
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import RANKS, SEGMENTS, Share

THIRTEEN_B = {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40, "intermediate_size": 13824}


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(tiny.config(**{"vocab_size": 32001, **THIRTEEN_B, **changes}))


@pytest.mark.parametrize("ranks", RANKS)
def test_the_parts_of_all_ranks_are_the_whole(ranks: int) -> None:
    whole, shares = config(), [Share(rank, ranks) for rank in range(ranks)]
    parts = [share.config(whole) for share in shares]
    for size in ("num_heads", "num_kv_heads", "intermediate_size"):
        assert sum(getattr(part, size) for part in parts) == getattr(whole, size)
    assert {(part.hidden_size, part.vocab_size, part.num_layers, part.head_dim) for part in parts} == {
        (whole.hidden_size, whole.vocab_size, whole.num_layers, whole.head_dim)
    }
    assert sum(share.segments for share in shares) == SEGMENTS
    ends = [share.vocabulary(whole) for share in shares]
    assert [begin for begin, _ in ends[1:]] == [end for _, end in ends[:-1]]
    assert (ends[0][0], ends[-1][1]) == (0, whole.vocab_size)
    assert shares[0].head_rows(whole) * ranks == 32008


@pytest.mark.parametrize("ranks", RANKS)
def test_library_products_have_the_same_shapes_on_any_number_of_ranks(ranks: int) -> None:
    for heads in (40, 8, 4):
        whole = config(num_key_value_heads=heads)
        if heads % ranks == 0:
            part = Share(0, ranks).config(whole)
            assert part.num_kv_heads // Share(0, ranks).units(part) == heads // Share().units(whole)


def test_numbers_of_ranks_that_do_not_fit_are_refused_with_those_that_do() -> None:
    Share(0, 4).check(config(num_attention_heads=52, num_key_value_heads=52, hidden_size=6656))
    with pytest.raises(ConfigError, match=r"52 heads with 52 key heads .* 8 ranks: wanted 1, 2, 4$"):
        Share(0, 8).check(config(num_attention_heads=52, num_key_value_heads=52, hidden_size=6656))
    with pytest.raises(ConfigError, match=r"wanted 1, 2, 4, 8$"):
        Share(0, 3).check(config())
