"""Loading: mapped, strict both ways, any file form, any type."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from baize_engine.errors import CheckpointError, RequestError
from baize_engine.model.config import ModelConfig
from baize_engine.model.weights import load_weights


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_every_tensor_arrives(tmp_path: Path, form: str, dtype: str) -> None:
    cfg = tiny.config()
    tensors = {**tiny.state(cfg, 0, torch.float16), **tiny.inv_freq(cfg)}
    tiny.write_model(tmp_path, cfg, tensors, form, shards=3)
    weights = load_weights(tmp_path, ModelConfig.from_folder(tmp_path), dtype)
    assert set(weights) == {name for name in tensors if not name.endswith("inv_freq")}
    wanted = torch.float16 if dtype == "auto" else getattr(torch, dtype)
    for name, tensor in weights.items():
        assert torch.equal(tensor, tensors[name].to(wanted)), name


def test_weights_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    cfg = tiny.config()
    tiny.write_model(tmp_path, cfg, tiny.state(cfg))
    weights = load_weights(tmp_path, ModelConfig.from_folder(tmp_path))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    ranges = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in maps]
    for tensor in weights.values():
        assert any(begin <= tensor.data_ptr() < end for begin, end in ranges)


def test_a_tied_head_may_be_stored_or_not(tmp_path: Path) -> None:
    cfg = tiny.config(tie_word_embeddings=True)
    tensors = tiny.state(cfg)
    tiny.write_model(tmp_path / "without", cfg, tensors)
    tiny.write_model(
        tmp_path / "with", cfg, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    )
    for folder in ("without", "with"):
        assert "lm_head.weight" not in load_weights(tmp_path / folder, ModelConfig.from_folder(tmp_path / folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks model\.norm\.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), r"holds a tensor that no part .* model\.extra"),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(95, 32)}),
            r"lm_head\.weight has shape \[95, 32\].*\[96, 32\]",
        ),
    ],
)
def test_strict_both_ways(tmp_path: Path, change: object, message: str) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg)
    change(tensors)  # type: ignore[operator]
    tiny.write_model(tmp_path, cfg, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path))


def test_integers_and_unknown_types_are_refused(tmp_path: Path) -> None:
    cfg = tiny.config()
    tiny.write_model(tmp_path, cfg, {**tiny.state(cfg), "model.norm.weight": torch.zeros(32, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is int32"):
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path))
    with pytest.raises(RequestError, match="dtype is 'float8'"):
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path), "float8")
