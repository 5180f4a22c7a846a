"""What a rank holds and sends, against the weights that it loads and the sizes of what ranks exchange."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from baize_engine.checkpoint.index import read_index
from baize_engine.errors import ConfigError
from baize_engine.model.config import ModelConfig
from baize_engine.model.parallel_cost import rank_cost
from baize_engine.model.share import Share
from baize_engine.model.weights import load_weights

# rows of every part are whole panels of int4, whose padding cost.py leaves out
SIZES = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024,
}  # fmt: skip


def model(folder: Path, **changes: object) -> Path:
    config = tiny.config(torch_dtype="float32", **{**SIZES, **changes})
    return tiny.write_model(folder, config, tiny.state(config))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rank_holds_what_is_planned(tmp_path: Path, ranks: int, quantize: str | None, tied: bool) -> None:
    folder = model(tmp_path / "model", tie_word_embeddings=tied)
    config = ModelConfig.from_folder(folder)
    weights = load_weights(read_index(folder), config, quantize=quantize, share=Share(0, ranks))
    found = rank_cost(config, ranks, quantize or "float32", 1, 16, "float32", "float32")
    assert found.weights == sum(weight.nbytes for weight in weights.values())


def test_what_is_exchanged_in_a_step(tmp_path: Path) -> None:
    """Two products a layer and the logits are gathered, and the chosen ids are sent."""
    config = ModelConfig.from_folder(model(tmp_path / "model", num_hidden_layers=3, vocab_size=131))
    found = rank_cost(config, 4, "float16", 5, 16, "float16", "float16")
    assert found.exchanges == 3 * 2 + 1 + 1
    logits = 34  # rows of a rank's head: two of eight parts of 131 ids
    assert found.sent == 3 * 5 * (3 * 2 * 256 * 4 + logits * 4 + 8)
    assert found.kv == 2 * 3 * 2 * 32 * 2  # K and V of 3 layers, 2 heads of 32 values
    assert found.read == found.weights - (131 - 5) * 256 * 2 + 5 * 16 * found.kv
    assert found.seconds(found.read, 2 * found.sent) == (1, 0.5)
    alone = rank_cost(config, 1, "float16", 5, 16, "float16", "float16")
    assert (alone.exchanges, alone.sent, alone.kv) == (0, 0, 4 * found.kv)


@pytest.mark.parametrize("ranks", [3, 4, 16])
def test_a_number_of_ranks_that_does_not_divide_is_refused(tmp_path: Path, ranks: int) -> None:
    config = ModelConfig.from_folder(model(tmp_path / "model", num_key_value_heads=2))
    with pytest.raises(ConfigError, match=f"cannot be split over {ranks} ranks: wanted 1, 2$"):
        rank_cost(config, ranks, "float16", 1, 16, "float16", "float16")
