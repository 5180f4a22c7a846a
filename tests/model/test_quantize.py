"""Quantised models: run, saved, loaded back, and refused where their scheme is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from decoders import greedy_logits, prompt

from baize_engine import Engine, SamplingParams
from baize_engine.backend import choose
from baize_engine.errors import CheckpointError, ConfigError, OutputError, RequestError
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.quantize import quantize
from baize_engine.model.weights import load_weights

KINDS = ("int8", "int4")


def folder(path: Path, dtype: torch.dtype = torch.float16, shards: int = 2, **changes: object) -> Path:
    cfg = tiny.config(torch_dtype=str(dtype).removeprefix("torch."), **changes)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, dtype, scale=0.2), shards=shards)


def test_the_embedding_norms_and_a_tied_head_stay(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", tie_word_embeddings=True)
    weights = load_weights(model, ModelConfig.from_folder(model), quantize="int8")
    floats = {name for name, weight in weights.items() if isinstance(weight, torch.Tensor)}
    assert floats == {name for name in weights if "norm" in name or name == names.EMBED}
    assert names.HEAD not in weights


@pytest.mark.parametrize("kind", KINDS)
def test_generation_runs_on_quantised_weights(tmp_path: Path, kind: str) -> None:
    """And its logits stay nearer to the float model's for int8 than the other way round would be luck."""
    model = folder(tmp_path / "m")
    config = ModelConfig.from_folder(model)
    exact, int8_activations = (
        Llama(config, load_weights(model, config, quantize=quantize_), choose.ops("cpu"), exact_activations=True)
        for quantize_ in (None, kind)
    )
    ids = prompt(12)
    _, wanted = greedy_logits(exact, ids, 1)
    _, got = greedy_logits(int8_activations, ids, 1)
    error = float((got - wanted).norm() / wanted.norm())
    assert 0 < error < (0.02 if kind == "int8" else 0.35)
    with Engine.from_pretrained(model, device="cpu", quantize=kind) as engine:
        tokens = engine.generate(ids, SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids
    assert tokens == greedy_logits(int8_activations, ids, 3)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_back(tmp_path: Path, kind: str) -> None:
    model = folder(tmp_path / "m")
    result = quantize(model, tmp_path / "q", kind)
    config = ModelConfig.from_folder(tmp_path / "q")
    assert config.quantization == kind
    at_load = load_weights(model, ModelConfig.from_folder(model), quantize=kind)
    mapped = load_weights(tmp_path / "q", config)
    assert set(mapped) == set(at_load)
    for name, weight in mapped.items():
        wanted = at_load[name]
        if isinstance(weight, torch.Tensor) or isinstance(wanted, torch.Tensor):
            assert torch.equal(weight, wanted), name
        else:
            assert all(torch.equal(a, b) for a, b in zip(weight.stored, wanted.stored, strict=True)), name
    assert result.bytes_after == sum(weight.nbytes for weight in mapped.values()) < result.bytes_before
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "q/model" in line]
    ranges = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in maps]
    values = mapped[names.layer(0, names.QKV)].values
    assert any(begin <= values.data_ptr() < end for begin, end in ranges)
    one = {}
    for name, path, argument in (
        ("load", model, kind),
        ("saved", tmp_path / "q", None),
        ("same", tmp_path / "q", kind),
    ):
        with Engine.from_pretrained(path, device="cpu", quantize=argument) as engine:
            params = SamplingParams(max_new_tokens=6, ignore_eos=True)
            one[name] = engine.generate(prompt(9), params)[0].token_ids
    assert one["load"] == one["saved"] == one["same"]


def test_the_scheme_stands_in_header_and_config(tmp_path: Path) -> None:
    quantize(folder(tmp_path / "m"), tmp_path / "q", "int4")
    described = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert described == {"quant_method": "baize", "scheme": "baize-2", "weights": "int4", "group_size": 32}
    raw = (tmp_path / "q" / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "scheme": "baize-2", "weights": "int4"}


@pytest.mark.parametrize(
    "change", [{"scheme": "baize-3"}, {"group_size": 64}, {"quant_method": "gptq"}, {"weights": "int3"}]
)
def test_another_scheme_is_refused(tmp_path: Path, change: dict) -> None:
    quantize(folder(tmp_path / "m"), tmp_path / "q", "int4")
    path = tmp_path / "q" / "config.json"
    described = json.loads(path.read_text())
    described["quantization_config"] |= change
    path.write_text(json.dumps(described))
    with pytest.raises(
        ConfigError, match=r"config\.json: config: quantization_config is .*those written by `baize quantize`"
    ):
        ModelConfig.from_folder(tmp_path / "q")


def test_a_saved_model_is_checked(tmp_path: Path) -> None:
    quantize(folder(tmp_path / "m"), tmp_path / "q", "int8")
    path = tmp_path / "q" / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "intermediate_size": 96}))
    with pytest.raises(
        CheckpointError, match=r"down_proj\.qweight is int8 of shape \[32, 80\], wanted int8 of \[32, 96\]"
    ):
        load_weights(tmp_path / "q", ModelConfig.from_folder(tmp_path / "q"))
    path.write_text(json.dumps({**described, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.2"):
        load_weights(tmp_path / "q", ModelConfig.from_folder(tmp_path / "q"))


def test_refusals(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    with pytest.raises(RequestError, match="weights is 'int3'"):
        quantize(model, tmp_path / "q", "int3")
    quantize(model, tmp_path / "q", "int8")
    with pytest.raises(RequestError, match="holds int8 weights already"):
        quantize(tmp_path / "q", tmp_path / "r", "int4")
    with pytest.raises(RequestError, match=r"quantize is 'int4', but .* holds int8 weights already"):
        Engine.from_pretrained(tmp_path / "q", device="cpu", quantize="int4")
    with pytest.raises(OutputError, match="not empty"):
        quantize(model, tmp_path / "q", "int4")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg)
    tensors["lm_head.weight"][90, 1] = float("nan")
    model = tiny.write_model(tmp_path / "m", cfg, tensors)
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(model, tmp_path / "q", "int8")
    assert not (tmp_path / "q").exists()
