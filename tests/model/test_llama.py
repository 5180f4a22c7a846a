"""The decoder: agreement with transformers over the config space, golden ids, and results that ignore the batch."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from assets import shared
from decoders import Decoder
from tolerances import GREEDY_MARGIN, LOGITS_FLOAT32

from baize_engine.backend import choose
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
VARIANTS = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "own head_dim": {"head_dim": 16},
    "coarse eps": {"rms_norm_eps": 1e-2},
    "theta": {"rope_theta": 500000.0},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3 rope": {"rope_parameters": LLAMA3, "num_key_value_heads": 2, "tie_word_embeddings": True},
}


def make(cfg: dict, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Llama, dict[str, torch.Tensor]]:
    weights = tiny.state(cfg, seed, dtype, scale=0.2)
    return Llama(ModelConfig.from_dict(cfg), weights, choose.ops("cpu")), weights


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model: Llama, ids: list[int], steps: int) -> tuple[list[int], list[torch.Tensor]]:
    decoder = Decoder(model, len(ids) + steps)
    sequence = decoder.sequence()
    logits = [decoder.prefill(ids, sequence)[0]]
    out = [int(logits[0].argmax())]
    while len(out) < steps:
        logits.append(decoder.forward([[out[-1]]], [sequence])[0])
        out.append(int(logits[-1].argmax()))
    return out, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_transformers(variant: str, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    cfg = tiny.config(**VARIANTS[variant])
    ours, weights = make(cfg, dtype)
    kept = {key: value for key, value in cfg.items() if key != "torch_dtype"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept)).float().eval()
    missing, unexpected = theirs.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    ids = prompt(21)
    mine, logits = greedy(ours, ids, 20)
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids + mine])).logits[0, len(ids) - 1 : -1]
    assert (torch.stack(logits) - wanted).abs().max() < LOGITS_FLOAT32
    for step, row in enumerate(wanted):
        best, second = row.topk(2).values
        assert mine[step] == int(row.argmax()) or best - second < GREEDY_MARGIN


def test_golden_ids_of_a_trained_model() -> None:
    folder = shared("assets/stories260K/golden.json").parent
    golden = json.loads((folder / "golden.json").read_text())
    config = ModelConfig.from_folder(folder)
    model = Llama(config, load_weights(folder, config), choose.ops("cpu"))
    for case in golden["cases"]:
        ids, logits = greedy(model, case["prompt_ids"], len(case["greedy_ids"]))
        assert ids == case["greedy_ids"]
        wanted = torch.tensor(case["first_logits_head"])
        assert (logits[0][: len(wanted)] - wanted).abs().max() < LOGITS_FLOAT32
        assert int(logits[0].argmax()) == case["first_argmax"]


def test_a_decode_step_does_not_depend_on_its_neighbours() -> None:
    model, _ = make(tiny.config(num_key_value_heads=2), torch.float16)
    prompts = [prompt(length, length) for length in (3, 17, 40, 1)]
    alone = [greedy(model, ids, 12) for ids in prompts]
    decoder = Decoder(model, 4 * 64)
    sequences = [decoder.sequence() for _ in prompts]
    logits = torch.cat([decoder.prefill(ids, s) for ids, s in zip(prompts, sequences, strict=True)])
    for step in range(12):
        for row, (ids, rows) in enumerate(alone):
            assert torch.equal(logits[row], rows[step])
            assert int(logits[row].argmax()) == ids[step]
        if step < 11:
            logits = decoder.forward([[int(row.argmax())] for row in logits], sequences)


def test_a_second_cache_is_not_mistaken_for_the_first() -> None:
    model, _ = make(tiny.config())
    first, _ = greedy(model, prompt(9), 8)
    second, _ = greedy(model, prompt(9), 8)
    assert first == second
