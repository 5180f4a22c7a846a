"""The demo model in a larger shape: the same answers, at every kind of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import Decoder
from shapes import Shape
from speculation_prompts import prompts
from torch import Tensor
from widened import check, write_widened

from baize_engine import Engine, SamplingParams
from baize_engine.backend.choose import reference_ops
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

# as in 125m: heads of twice the elements, a third of the columns in use; norms and q are rounded anew
SHAPE = Shape(layers=6, heads=6, hidden=384, intermediate=1024, vocabulary=1200)
# heads of four times the elements, a quarter of the columns: norms and q are scaled by powers of two
EXACT = Shape(layers=5, heads=4, hidden=512, intermediate=704, vocabulary=1200)


def greedy(folder: Path) -> list[list[int]]:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        found = engine.generate([prompt.text for prompt in prompts()], SamplingParams(max_new_tokens=160))
    return [completion.token_ids for completion in found]


def logits(folder: Path, kind: str, ids: list[int]) -> Tensor:
    """Of all positions, by the reference ops, which round no activations."""
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, quantize=None if kind == "float16" else kind)
    decoder = Decoder(Llama(config, weights, reference_ops("cpu")), len(ids))
    return decoder.forward([ids], [decoder.sequence()], all_logits=True, prompt=True)


def test_it_has_the_larger_shape(demo: Path, tmp_path: Path) -> None:
    write_widened(demo, SHAPE, tmp_path / "wide")
    config = ModelConfig.from_folder(tmp_path / "wide")
    wanted = ModelConfig.from_dict(SHAPE.config(SHAPE.vocabulary, "float16"))
    assert replace(config, rms_norm_eps=wanted.rms_norm_eps) == wanted
    assert config.rms_norm_eps == pytest.approx(1e-6 / 3)


def test_it_says_the_same(demo: Path, tmp_path: Path) -> None:
    write_widened(demo, SHAPE, tmp_path / "wide")
    said = greedy(demo)
    assert min(map(len, said)) > 20
    assert greedy(tmp_path / "wide") == said


@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_its_logits_are_the_same(demo: Path, kind: str, tmp_path: Path) -> None:
    """Up to the order of sums, and no added id goes before another; with quantised weights, too."""
    write_widened(demo, EXACT, tmp_path / "wide")
    with Engine.from_pretrained(demo, device="cpu") as engine:
        ids = [token for prompt in prompts()[::8] for token in engine.encode(prompt.text)][:512]
    small, large = logits(demo, kind, ids), logits(tmp_path / "wide", kind, ids)
    rows = small.shape[1]
    assert (small - large[:, :rows]).abs().max() < 1e-3  # of logits of up to 20
    assert torch.equal(large[:, rows:], large[:, :1].expand(-1, EXACT.vocabulary - rows))  # <unk>'s


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (replace(SHAPE, layers=3), "layers is 4, more than the shape's 3"),
        (replace(SHAPE, vocabulary=1000), "vocabulary is 1025, more than the shape's 1000"),
        (replace(SHAPE, heads=8), "heads of 48 elements, wanted a multiple of the model's 32"),
    ],
)
def test_what_does_not_fit_is_said(demo: Path, shape: Shape, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(ModelConfig.from_folder(demo), shape)
