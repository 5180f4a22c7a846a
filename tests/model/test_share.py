"""Share: which models can be split over how many ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from baize_engine.errors import ConfigError
from baize_engine.model.config import OLD_INT4, ModelConfig
from baize_engine.model.share import RANKS, SEGMENTS, Share

CONFIG = ModelConfig.from_dict(tiny.config(num_attention_heads=8, num_key_value_heads=8, hidden_size=256))
THIRTEEN_B = replace(
    CONFIG, hidden_size=5120, num_heads=40, num_kv_heads=40, head_dim=128, intermediate_size=13824, vocab_size=32001
)


def test_ranks_share_the_vocabulary() -> None:
    for ranks in RANKS:
        for size in (96, 97, 103, 32001):
            config = replace(CONFIG, vocab_size=size)
            cuts = [Share(rank, ranks).vocabulary(config) for rank in range(ranks)]
            assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
            assert cuts[-1][1] == size
            assert all(end - begin == Share(0, ranks).head_rows(config) for begin, end in cuts[:-1])


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({}, 3, r"^8 segments cannot be split over 3 ranks: wanted 1, 2, 4, 8$"),
        ({"num_kv_heads": 2}, 4, r"^8 heads with 2 key heads cannot be split over 4 ranks: wanted 1, 2$"),
        ({"vocab_size": 17}, 8, r"^vocab_size 17 cannot be split over 8 ranks: wanted 1, 2$"),
        ({"num_heads": 7, "head_dim": 6}, 1, r"num_attention_heads \* head_dim is 42, .*: wanted a multiple of 8$"),
        (
            {"quantization": "int4", "scheme": "baize-2"}, 2,
            r"intermediate_size is 80, .* of whole groups of 32, as int4 is stored: wanted a multiple of 256$",
        ),
        (
            {"quantization": "int4", "scheme": OLD_INT4["scheme"], "intermediate_size": 256}, 2,
            r"head_dim is 256, .* groups of 64, .* wanted a multiple of 512$",
        ),
    ],
)  # fmt: skip
def test_what_would_do_is_named(changes: dict, ranks: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Share(0, ranks).check(replace(CONFIG, **changes))


def test_other_models_are_taken() -> None:
    for ranks in RANKS:
        Share(0, ranks).check(CONFIG)
        Share(0, ranks).check(replace(CONFIG, intermediate_size=512, quantization="int4", scheme="baize-2"))


@pytest.mark.parametrize("ranks", RANKS)
def test_the_parts_of_all_ranks_are_the_whole(ranks: int) -> None:
    whole, shares = THIRTEEN_B, [Share(rank, ranks) for rank in range(ranks)]
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
        whole = replace(THIRTEEN_B, num_kv_heads=heads)
        if heads % ranks == 0:
            part = Share(0, ranks).config(whole)
            assert part.num_kv_heads // Share(0, ranks).units(part) == heads // Share().units(whole)


def test_each_rank_has_intermediate_columns() -> None:
    config = replace(CONFIG, intermediate_size=24)
    for ranks in (1, 2, 4, 8):
        Share(0, ranks).check(config)
    with pytest.raises(ConfigError, match=r"^intermediate_size 10 cannot be split over 8 ranks: wanted 1, 2$"):
        Share(0, 8).check(replace(config, intermediate_size=10))
    with pytest.raises(ConfigError, match=r"num_attention_heads \* head_dim is 12, .* wanted a multiple of 8$"):
        Share(0, 2).check(replace(config, num_heads=6, num_kv_heads=6, head_dim=2))
