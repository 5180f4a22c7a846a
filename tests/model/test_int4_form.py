"""The int4 form of a model has the codes that loading it as int4 gives, whatever form and device the weights have."""

from __future__ import annotations

from dataclasses import replace

import decoders
import pytest
import tiny
import torch

from baize_engine.errors import CheckpointError
from baize_engine.kernels import quantized
from baize_engine.kernels.quantized import Int4Weight, Int8Weight, dequantize, in_rows, join
from baize_engine.model import int4_form as module
from baize_engine.model import names
from baize_engine.model.int4_form import added_bytes, int4_form

SHAPES = [{}, {"num_key_value_heads": 1, "head_dim": 12}, {"tie_word_embeddings": True}, {"vocab_size": 101}]


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("joined", [False, True])
def test_the_codes_are_those_of_the_matrices(
    changes: dict, dtype: torch.dtype, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 300)  # cuts between any rows
    model = decoders.make(tiny.config(**changes), dtype, joined=joined)
    made = int4_form(model)
    shapes, kinds = names.packed(model.config), names.quantized(model.config)
    assert made.weights.keys() == shapes.keys()
    for name, weight in made.weights.items():
        if name not in kinds:
            assert weight is model.weights[name]
            continue
        parts = [model.weights[part] for part in ((name,) if joined else names.parts(name))]
        assert isinstance(weight, Int4Weight)
        wanted = quantized.quantize(join(parts), "int4")  # type: ignore[arg-type]
        for one, other in zip(in_rows(weight).stored, in_rows(wanted).stored, strict=True):  # type: ignore[arg-type]
            assert torch.equal(one, other)
    held = sum(made.weights[name].nbytes for name in kinds)
    assert added_bytes(model.config) <= held <= added_bytes(model.config) + 15 * len(kinds) * 200


def test_int8_is_widened_first() -> None:
    model = decoders.make(tiny.config(), quantize="int8")
    made = int4_form(model).weights[names.layer(0, names.DOWN)]
    source = model.weights[names.layer(0, names.DOWN)]
    assert isinstance(source, Int8Weight)
    assert torch.equal(dequantize(made), dequantize(quantized.quantize(dequantize(source), "int4")))


def test_it_rounds_activations_though_the_model_does_not() -> None:
    assert not int4_form(replace(decoders.make(tiny.config()), exact_activations=True)).exact_activations


def test_refuses_what_has_no_codes_by_name() -> None:
    model = decoders.make(tiny.config())
    name = names.layer(1, names.K)
    broken = model.weights[name].clone()  # type: ignore[union-attr]
    broken[3, 4] = float("inf")
    with pytest.raises(CheckpointError, match=f"{name}: .*not finite"):
        int4_form(replace(model, weights={**model.weights, name: broken}))
    with pytest.raises(ValueError, match=r"proj\.weight is int4 already, wanted float or int8"):
        int4_form(decoders.make(tiny.config(), quantize="int4"))
