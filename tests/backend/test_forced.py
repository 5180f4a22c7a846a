"""The judge of greedy ids: it lets near ties turn, and finds one wrong id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import decoders
import forced
import pytest
import torch

from baize_engine import recover
from baize_engine.backend.choose import reference_ops
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

PROMPTS = [[1, 40 + n, 60, 70 + n] for n in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """The demo's, with float32 activations."""
    pair = Path(decoders.__file__).parents[2] / "baize_engine" / "demo_pair"
    folder = tmp_path_factory.mktemp("demo") / "tuned"
    recover(pair / "base", pair / "diff", folder, device="cpu", progress=False)
    config = ModelConfig.from_folder(folder)
    return Llama(config, load_weights(folder, config, "auto", "cpu", None), reference_ops("cpu"))


def answers(model: Llama) -> list[forced.Answer]:
    return [(prompt, decoders.greedy_logits(model, prompt, 16)[0]) for prompt in PROMPTS]


def test_a_float16_decoder_stays_within_the_bound(model: Llama) -> None:
    half = replace(model, activation=torch.float16)
    found = answers(half)
    error = forced.half_error(model, found)
    assert 0 < error < 0.5  # of logits of up to 19
    assert forced.behind(model, found) <= 2 * error
    assert forced.behind(model, answers(model)) == 0


def test_one_wrong_id_is_found(model: Llama) -> None:
    found = answers(model)
    error = forced.half_error(model, found)
    prompt, ids = found[3]
    found[3] = prompt, [*ids[:9], (ids[9] + 1) % model.config.vocab_size, *ids[10:]]
    assert forced.behind(model, found) > 4 * error
