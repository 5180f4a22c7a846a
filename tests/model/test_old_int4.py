"""int4 of the scheme "baize-1" in folders that were written before the scheme of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import shares
import tiny
import torch
from decoders import prompt

from baize_engine import Engine, SamplingParams
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import BaizeWarning, CheckpointError, RequestError
from baize_engine.kernels import quantized
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.quantize import quantize
from baize_engine.model.share import RANKS, Share
from baize_engine.model.weights import load_weights, nbytes


def written(path: Path, **changes: object) -> Path:
    cfg = tiny.config(torch_dtype="float16", **changes)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, torch.float16, scale=0.2))


def write_old(path: Path, model: Path) -> dict[str, torch.Tensor]:
    """The model in `model` as `baize quantize --weights int4` wrote it in scheme "baize-1"; its matrices, dequantised."""
    config = ModelConfig.from_folder(model)
    published = load_weights(model, config)
    tensors, wanted = {}, {}
    for name in names.packed(config):
        whole = torch.cat([published[part] for part in names.parts(name)])
        if name not in names.quantized(config):
            tensors[name] = whole
            continue
        rows, columns = whole.shape
        groups = torch.nn.functional.pad(whole.float(), (0, -columns % 64)).view(rows, -1, 64)
        scales = (groups.abs().amax(2) / 7).half()
        codes = (groups / scales.float()[:, :, None]).round().clamp(-8, 7)
        wanted[name] = (codes * scales.float()[:, :, None]).flatten(1)[:, :columns]
        stored = (codes + 8).to(torch.uint8)
        stem = name.removesuffix(names.WEIGHT)
        tensors[stem + ".qweight"] = (stored[:, :, :32] | stored[:, :, 32:] << 4).flatten(1)
        tensors[stem + ".scales"] = scales
    path.mkdir()
    safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    old = {"quant_method": "baize", "scheme": "baize-1", "weights": "int4", "group_size": 64}
    described = {**json.loads((model / "config.json").read_text()), "quantization_config": old}
    (path / "config.json").write_text(json.dumps(described))
    return wanted


def test_int4_of_the_old_scheme_is_read_and_held_as_int8(tmp_path: Path) -> None:
    model = written(tmp_path / "m")
    wanted = write_old(tmp_path / "old", model)
    config = ModelConfig.from_folder(tmp_path / "old")
    assert (config.quantization, config.held) == ("int4", "int8")
    with pytest.warns(BaizeWarning, match=r"old holds int4 weights of the old scheme baize-1, which are held as int8"):
        weights = load_weights(tmp_path / "old", config)
    for name, exact in wanted.items():
        weight = weights[name]
        assert isinstance(weight, quantized.Int8Weight)
        step = exact.abs().amax(1, keepdim=True) / 127
        assert ((quantized.dequantize(weight) - exact).abs() <= step / 2 * 1.001).all(), name
    assert nbytes(read_index(tmp_path / "old"), config) == sum(weight.nbytes for weight in weights.values())
    for quantize_ in (None, "int4"):
        with (
            pytest.warns(BaizeWarning),
            Engine.from_pretrained(tmp_path / "old", device="cpu", quantize=quantize_) as engine,
        ):
            assert len(engine.generate(prompt(9), SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids) == 3
    with pytest.raises(RequestError, match="holds int4 weights already"):
        quantize(tmp_path / "old", tmp_path / "new", "int4")


def test_a_scale_that_is_not_finite_names_file_and_tensor(tmp_path: Path) -> None:
    write_old(tmp_path / "old", written(tmp_path / "m"))
    path = tmp_path / "old" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.1.mlp.down_proj.scales"][3, 0] = float("inf")
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.layers\.1\.mlp\.down_proj: .*not finite"):
        load_weights(tmp_path / "old", ModelConfig.from_folder(tmp_path / "old"))


def test_a_rank_holds_its_part_of_the_old_scheme_as_int8(tmp_path: Path) -> None:
    """Each of its matrices is converted as the matrix it is."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
    whole = write_old(tmp_path / "q", written(tmp_path / "m", **sizes, num_hidden_layers=1, vocab_size=97))
    config, index = ModelConfig.from_folder(tmp_path / "q"), read_index(tmp_path / "q")
    for name in list(whole):
        rows = [names.shapes(config)[part][0] for part in names.parts(name)]
        whole |= dict(zip(names.parts(name), whole[name].split(rows), strict=True))
    for share in (Share(rank, ranks) for ranks in RANKS for rank in range(ranks)):
        with pytest.warns(BaizeWarning, match="held as int8"):
            weights = load_weights(index, config, share=share)
        parts = shares.parts(
            {name: tensor for name, tensor in whole.items() if name in names.shapes(config)}, config, share
        )
        for name in names.quantized(config):
            wanted = quantized.quantize(torch.cat([parts[each] for each in names.parts(name)]), "int8")
            assert torch.equal(weights[name].values, wanted.values), name
            assert torch.equal(weights[name].scales, wanted.scales), name
        assert nbytes(index, config, share=share) == sum(weight.nbytes for weight in weights.values())
