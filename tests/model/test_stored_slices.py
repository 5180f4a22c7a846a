"""What ranks load of stored quantised models: codes and scales as they are stored, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import shares
import torch
from share_cases import GROUPED, STORED, all_shares, same, write

from baize_engine.checkpoint.index import read_index
from baize_engine.errors import ConfigError
from baize_engine.kernels import quantized
from baize_engine.kernels.quantized import Int4Weight, Weight
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.quantize import quantize
from baize_engine.model.share import Share
from baize_engine.model.weights import load_weights, nbytes


def columns(weight: Weight, begin: int, end: int) -> Weight:
    if isinstance(weight, Int4Weight):
        flat = quantized.in_rows(weight)
        return Int4Weight(
            flat.values[:, begin // 2 : end // 2], flat.scales[:, begin // 32 : end // 32], flat.factors, end - begin
        )
    return quantized.Int8Weight(weight.values[:, begin:end], weight.scales)


def stored_part(whole: Mapping[str, Weight], name: str, config: ModelConfig, share: Share) -> Weight:
    """The rank's part of a stored matrix: codes and scales are those of the whole one."""
    weight = whole[name]
    width = weight.shape[1]
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        missing = -width % 8
        width = (width + missing) // 8
        if missing:
            weight = quantized.Int8Weight(torch.nn.functional.pad(weight.values, (0, missing)), weight.scales)
        first = share.rank * share.segments
        cut = [columns(weight, s * width, (s + 1) * width) for s in range(first, first + share.segments)]
    elif name == names.HEAD:
        begin, end = share.vocabulary(config)
        zeros = quantized.quantize(torch.zeros(share.head_rows(config) - (end - begin), width), config.quantization)
        cut = [weight.rows(begin, end), zeros] if zeros.shape[0] else [weight.rows(begin, end)]
    else:
        cut, first, shapes, parts = [], 0, names.shapes(config), names.shapes(config, share)
        for each in names.parts(name):
            rows, own = shapes[each][0], parts[each][0]
            begin, end = share.rank * own, min((share.rank + 1) * own, rows)
            cut.append(weight.rows(first + begin, first + end))
            if own > end - begin:
                cut.append(quantized.quantize(torch.zeros(own - (end - begin), width), config.quantization))
            first += rows
    joined = quantized.join(cut)
    return quantized.in_panels(joined) if isinstance(joined, Int4Weight) else joined


@pytest.mark.parametrize(
    ("form", "kind"), [*((form, "int8") for form in STORED), *((form, "int4") for form in ("head", "tied"))]
)
def test_the_parts_of_a_stored_model(tmp_path: Path, form: str, kind: str) -> None:
    quantize(write(tmp_path / "m", STORED[form]), tmp_path / "q", kind)
    config, index = ModelConfig.from_folder(tmp_path / "q"), read_index(tmp_path / "q")
    whole = load_weights(index, config)
    for share in all_shares():
        weights = load_weights(index, config, share=share)
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == names.packed(config, share)
        coded = names.quantized(config)
        plain = shares.parts({name: weight for name, weight in whole.items() if name not in coded}, config, share)
        for name, weight in weights.items():
            same(weight, stored_part(whole, name, config, share) if name in coded else plain[name], name)
        assert nbytes(index, config, share=share) == sum(weight.nbytes for weight in weights.values())


def test_stored_int4_is_not_cut_within_a_block(tmp_path: Path) -> None:
    quantize(write(tmp_path / "m", GROUPED), tmp_path / "q", "int4")
    with pytest.raises(ConfigError, match=r"intermediate_size is 176, .* groups of 32, .* wanted a multiple of 256"):
        load_weights(tmp_path / "q", ModelConfig.from_folder(tmp_path / "q"), share=Share(0, 2))
