"""The names and shapes of a model's tensors: those of transformers, and those whose rows are joined."""

from __future__ import annotations

import pytest
import tiny

from baize_engine.model import names
from baize_engine.model.config import ModelConfig

GROUPED = tiny.config(num_key_value_heads=2)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"num_hidden_layers": 3, "intermediate_size": 48}])
def test_shapes_are_those_of_a_state_dict(changes: dict) -> None:
    cfg = tiny.config(**changes)
    stored = {name: tuple(tensor.shape) for name, tensor in tiny.state(cfg).items() if not name.endswith("inv_freq")}
    assert names.shapes(ModelConfig.from_dict(cfg)) == stored


def test_a_tied_head_is_no_tensor_of_its_own() -> None:
    untied, tied = (
        names.shapes(ModelConfig.from_dict(tiny.config(tie_word_embeddings=tied))) for tied in (False, True)
    )
    assert untied.keys() - tied.keys() == {names.HEAD}


def test_joined_tensors_have_the_rows_of_their_parts() -> None:
    config = ModelConfig.from_dict(GROUPED)
    shapes, packed = names.shapes(config), names.packed(config)
    parts = [part for name in packed for part in names.parts(name)]
    assert sorted(parts) == sorted(shapes)  # each published tensor in exactly one
    for name, (rows, *columns) in packed.items():
        assert rows == sum(shapes[part][0] for part in names.parts(name))
        assert all(list(shapes[part][1:]) == columns for part in names.parts(name))
    assert names.parts("model.layers.1.self_attn.qkv_proj.weight") == tuple(
        f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"
    )
    assert names.parts("model.layers.0.mlp.gate_up_proj.weight") == (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    )


def test_all_matrices_but_the_embedding_are_quantised() -> None:
    quantized = names.quantized(ModelConfig.from_dict(GROUPED))
    layer = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert quantized == {f"model.layers.{n}.{part}.weight" for n in range(2) for part in layer} | {names.HEAD}
    tied = names.quantized(ModelConfig.from_dict(tiny.config(tie_word_embeddings=True)))
    assert names.HEAD not in tied
    assert names.EMBED not in tied
