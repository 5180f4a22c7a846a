"""int8 and int4 weights: the format's own promises, quantising at load, and saved models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from decoders import greedy_logits, prompt
from torch.utils._python_dispatch import TorchDispatchMode

from baize_engine import Engine, SamplingParams
from baize_engine.backend import choose
from baize_engine.errors import CheckpointError, ConfigError, OutputError, RequestError
from baize_engine.kernels import quantized, reference
from baize_engine.model import names, weight_loader
from baize_engine.model import weights as weights_module
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.quantize import quantize
from baize_engine.model.weights import load_weights, nbytes

KINDS = ("int8", "int4")


def draw(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.03).to(dtype)


def folder(path: Path, dtype: torch.dtype = torch.float16, shards: int = 2, **changes: object) -> Path:
    cfg = tiny.config(torch_dtype=str(dtype).removeprefix("torch."), **changes)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, dtype, scale=0.2), shards=shards)


# The format


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_bounded_by_the_step(kind: str, columns: int) -> None:
    """int8: half a step. int4: the extreme is on -8 at the best of its candidates, so that its twin may lose 2.3 steps."""
    weight = draw(20, columns)
    back = quantized.dequantize(quantized.quantize(weight, kind))
    if kind == "int8":
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((back - weight).abs() <= step / 2 * 1.001).all()
        return
    padded = torch.nn.functional.pad(weight, (0, -columns % 64)).view(20, -1, 64)
    step = (padded.abs().amax(2, keepdim=True) / 8).expand_as(padded).flatten(1)[:, :columns]
    assert ((back - weight).abs() <= step * 2.4).all()
    assert (back - weight).norm() < 0.12 * weight.norm()


def test_the_layout_of_int4_is_what_it_says() -> None:
    weight = draw(3, 130)
    packed = quantized.quantize(weight, "int4")
    assert packed.values.shape == (3, 96)
    assert packed.scales.shape == (3, 3)
    back = quantized.dequantize(packed)
    for row in range(3):
        for column in (0, 31, 32, 63, 64, 100, 129):
            group, place = divmod(column, 64)
            byte = int(packed.values[row, group * 32 + place % 32])
            code = (byte & 15 if place < 32 else byte >> 4) - 8
            assert float(back[row, column]) == code * float(packed.scales[row, group])
    assert (packed.values[:, 64 + 1 : 96] >> 4 == 8).all()  # what pads the last group is zero


def test_int4_takes_the_best_of_its_candidates() -> None:
    weight = draw(50, 640)
    chosen = (quantized.dequantize(quantized.quantize(weight, "int4")) - weight).square().view(50, 10, 64).sum(2)
    groups = weight.view(50, 10, 64)
    for factor in quantized.CANDIDATES:
        extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        scale = (extreme * factor / -8).half().float()
        other = ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(2)
        assert (chosen <= other * 1.0001).all()


class Ops(TorchDispatchMode):
    """Records torch's ops and their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.append((str(func), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_takes_only_ops_whose_bits_are_every_devices(kind: str) -> None:
    """No division by a number, which a GPU does by the reciprocal; no sum of torch's, whose order is the device's own."""
    with Ops() as ops:
        quantized.quantize(draw(5, 200), kind)
    divided = [args for name, args in ops.seen if name.startswith("aten.div")]
    assert divided
    assert all(isinstance(arg, torch.Tensor) and arg.dim() > 0 for args in divided for arg in args)
    names_ = {name.split(".")[1] for name, _ in ops.seen}
    assert not names_ & {"sum", "mean", "norm", "linalg_vector_norm", "mm", "dot", "reciprocal"}


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_a_code_stands_for_come_back(kind: str) -> None:
    weight = quantized.dequantize(quantized.quantize(draw(9, 128), kind))
    again = quantized.dequantize(quantized.quantize(weight, kind))
    assert (again - weight).abs().max() <= 2e-3 * weight.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-12, 6e4])
def test_rows_of_one_value(kind: str, value: float) -> None:
    """Zeros stay zero; what is too small for a float16 scale becomes zero; large values keep their size."""
    back = quantized.dequantize(quantized.quantize(torch.full((2, 64), value), kind))
    bound = 0.01 * value if kind == "int8" or value > 1 else value
    assert (back - value).abs().max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_join(kind: str) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    parts = [quantized.quantize(weight[:7], kind), quantized.quantize(weight[7:], kind)]
    assert torch.equal(quantized.dequantize(quantized.join(parts)), quantized.dequantize(whole))
    assert torch.equal(quantized.dequantize(quantized.rows(whole, 7, 30)), quantized.dequantize(parts[1]))
    assert whole.nbytes == (30 * 100 + 30 * 4 if kind == "int8" else 30 * 64 + 30 * 2 * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(30, 100)
    whole = quantized.quantize(weight, kind)
    monkeypatch.setattr(quantized, "ROWS", 700)
    again = quantized.quantize(weight, kind)
    assert torch.equal(whole.values, again.values)
    assert torch.equal(whole.scales, again.scales)


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantized.quantize(torch.tensor([[1.0, float("nan")]]), "int8")
    with pytest.raises(ValueError, match="wanted a float matrix"):
        quantized.quantize(torch.zeros(4, dtype=torch.float32), "int8")
    with pytest.raises(ValueError, match=r"kind is 'int2'"):
        quantized.quantize(torch.zeros(4, 4), "int2")
    with pytest.raises(ValueError, match=r"out has shape \(4, 5\), wanted \(4, 4\)"):
        quantized.quantize(torch.zeros(4, 4), "int8", out=quantized.empty("int8", 4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_that_of_the_dequantised_weight(kind: str) -> None:
    weight = quantized.quantize(draw(40, 96), kind)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(reference.linear(x, weight), reference.linear(x, quantized.dequantize(weight)))


# Loading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_quantised_at_load(tmp_path: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces by several workers: each matrix is what quantising it whole gives."""
    monkeypatch.setattr(weight_loader, "PIECE", 700)
    model = folder(tmp_path / "m", dtype)
    config = ModelConfig.from_folder(model)
    published = load_weights(model, config)
    weights = load_weights(model, config, quantize=kind)
    assert set(weights) == set(names.packed(config))
    for name, weight in weights.items():
        whole = torch.cat([published[part] for part in names.parts(name)])
        if name in names.quantized(config):
            wanted = quantized.quantize(whole, kind)
            assert torch.equal(weight.values, wanted.values), name
            assert torch.equal(weight.scales, wanted.scales), name
        else:
            assert torch.equal(weight, whole), name
    held = sum(weight.nbytes for weight in weights.values())
    assert nbytes(backend_index(model), config, quantize=kind) == held


def backend_index(model: Path):
    from baize_engine.checkpoint.index import read_index

    return read_index(model)


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


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    model = tiny.write_model(tmp_path / "m", cfg, tensors)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: .*finite"):
        load_weights(model, ModelConfig.from_folder(model), quantize="int4")


# Saved


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
        for part in ("values", "scales") if name in names.quantized(config) else ("data",):
            assert torch.equal(getattr(weight, part), getattr(at_load[name], part)), name
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


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_goes_to_a_gpu_in_pieces(
    tmp_path: Path, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by ranges as any other; here the pieces go to the CPU's memory, test_gpu has a device."""
    quantize(folder(tmp_path / "m"), tmp_path / "q", kind)
    config = ModelConfig.from_folder(tmp_path / "q")
    devices: list[str] = []

    def load(entries: Any, kinds: Any, device: str) -> Any:
        devices.append(device)
        return weight_loader.load(entries, kinds, "cpu")

    monkeypatch.setattr(weight_loader, "PIECE", 700)
    monkeypatch.setattr(weights_module, "load", load)
    monkeypatch.setattr(weights_module, "view", lambda *_: pytest.fail("mapped"))
    read = load_weights(tmp_path / "q", config, dtype, "cuda")
    assert devices == ["cuda"]
    monkeypatch.undo()
    mapped = load_weights(tmp_path / "q", config, dtype)
    assert set(read) == set(mapped)
    for name, weight in read.items():
        for part in ("values", "scales") if name in names.quantized(config) else ("data",):
            one, two = getattr(weight, part), getattr(mapped[name], part)
            assert one.dtype == two.dtype, name
            assert torch.equal(one, two), name


def test_the_scheme_stands_in_header_and_config(tmp_path: Path) -> None:
    quantize(folder(tmp_path / "m"), tmp_path / "q", "int4")
    described = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert described == {"quant_method": "baize", "scheme": "baize-1", "weights": "int4", "group_size": 64}
    raw = (tmp_path / "q" / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "scheme": "baize-1", "weights": "int4"}


@pytest.mark.parametrize(
    "change", [{"scheme": "baize-2"}, {"group_size": 32}, {"quant_method": "gptq"}, {"weights": "int3"}]
)
def test_another_scheme_is_refused(tmp_path: Path, change: dict) -> None:
    quantize(folder(tmp_path / "m"), tmp_path / "q", "int4")
    path = tmp_path / "q" / "config.json"
    described = json.loads(path.read_text())
    described["quantization_config"] |= change
    path.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"config\.json: config: quantization_config is .*'baize-1'"):
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
    with pytest.raises(RequestError, match=r"quantize is 'int4', and .* holds int8 weights already"):
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
