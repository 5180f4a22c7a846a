"""What ranks load: together the whole model, bit for bit, in every precision and from every form of files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import measured_share
import pytest
import shares
import sparse
import tiny
import torch
from shapes import PRESETS
from torch import Tensor

from baize_engine.checkpoint.index import read_index
from baize_engine.errors import ConfigError
from baize_engine.kernels import quantized
from baize_engine.kernels.quantized import Int4Weight, Weight
from baize_engine.model import names, weight_loader
from baize_engine.model.config import ModelConfig
from baize_engine.model.quantize import quantize
from baize_engine.model.share import RANKS, Share
from baize_engine.model.weights import load_weights, nbytes

# one key head a rank of eight; segments of 16 columns; a vocabulary that no number of ranks divides
PLAIN = tiny.config(hidden_size=128, num_attention_heads=8, num_key_value_heads=8, vocab_size=97, intermediate_size=128)
GROUPED = {**PLAIN, "num_attention_heads": 16, "head_dim": 16, "intermediate_size": 176}  # int4's panels and blocks cut
TIED = {**PLAIN, "tie_word_embeddings": True, "vocab_size": 96}
BESIDE = 512 << 20  # bytes of a process beside its share
NO_PROC = not Path("/proc/self/status").exists()
PADDED = {**GROUPED, "intermediate_size": 172}  # segments of 22 columns, of which the last has 18
FEW = {**PLAIN, "intermediate_size": 58}  # of 8, of which the last has 2
CONFIGS = {"plain": PLAIN, "grouped": GROUPED, "tied": TIED, "padded": PADDED, "few": FEW}
STORABLE = {**GROUPED, "intermediate_size": 512}  # segments of whole blocks
STORED = {"head": STORABLE, "tied": {**STORABLE, "tie_word_embeddings": True}, "padded": PADDED, "few": FEW}


def write(path: Path, cfg: dict, dtype: str = "float16", form: str = "safetensors", shards: int = 2) -> Path:
    kind = getattr(torch, dtype)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, kind, scale=0.2), form, shards)


def same(got: Weight, wanted: Weight, name: str) -> None:
    assert type(got) is type(wanted), name
    mine, others = ([w] if isinstance(w, Tensor) else w.stored for w in (got, wanted))
    for one, two in zip(mine, others, strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape), name
        assert torch.equal(one, two), name


def all_shares() -> list[Share]:
    return [Share(rank, ranks) for ranks in RANKS for rank in range(ranks)]


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_parts_of_floats(
    tmp_path: Path, cfg: dict, stored: str, form: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_loader, "PIECE", 7000)
    model = write(tmp_path / "m", cfg, stored, form)
    config, index = ModelConfig.from_folder(model), read_index(model)
    whole = load_weights(index, config, dtype)
    for share in all_shares():
        weights = load_weights(index, config, dtype, share=share)
        assert {name: weight.shape for name, weight in weights.items()} == names.shapes(config, share)
        parts = shares.parts(whole, config, share)
        for name, weight in weights.items():
            same(weight, parts[name], name)
        assert nbytes(index, config, dtype, share=share) == sum(weight.nbytes for weight in weights.values())


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stored", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_parts_are_quantised_as_the_matrices_they_are(
    tmp_path: Path, cfg: dict, stored: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_loader, "PIECE", 7000)
    model = write(tmp_path / "m", cfg, stored)
    config, index = ModelConfig.from_folder(model), read_index(model)
    whole = load_weights(index, config)
    for share in all_shares():
        weights = load_weights(index, config, quantize=kind, share=share)
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == names.packed(config, share)
        parts = shares.parts(whole, config, share)
        for name, weight in weights.items():
            wanted: Weight = torch.cat([parts[each] for each in names.parts(name)])
            if name in names.quantized(config):
                wanted = quantized.quantize(wanted, kind)
            same(weight, wanted, name)
        assert nbytes(index, config, quantize=kind, share=share) == sum(weight.nbytes for weight in weights.values())


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


def test_each_rank_has_intermediate_columns() -> None:
    config = ModelConfig.from_dict({**PLAIN, "intermediate_size": 24})
    for ranks in (1, 2, 4, 8):
        Share(0, ranks).check(config)
    with pytest.raises(ConfigError, match=r"intermediate_size 10 and .* cannot be split over 8 ranks: wanted 1, 2$"):
        Share(0, 8).check(replace(config, intermediate_size=10))
    with pytest.raises(ConfigError, match=r"num_attention_heads \* head_dim is 12, .* wanted a multiple of 8$"):
        Share(0, 2).check(replace(config, num_heads=6, num_kv_heads=6, head_dim=2))


def test_stored_int4_is_not_cut_within_a_block(tmp_path: Path) -> None:
    quantize(write(tmp_path / "m", GROUPED), tmp_path / "q", "int4")
    with pytest.raises(ConfigError, match=r"intermediate_size is 176, .* groups of 32, .* wanted a multiple of 256"):
        load_weights(tmp_path / "q", ModelConfig.from_folder(tmp_path / "q"), share=Share(0, 2))


def measured(share: Share, kind: str, *folders: Path) -> tuple[int, int]:
    """The peak memory of a process that loads a share, and the share's bytes."""
    command = [sys.executable, measured_share.__file__, share.rank, share.ranks, kind, *folders]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    peak, held = map(int, done.stdout.split())
    return peak, held


@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["", "int8"])
@pytest.mark.parametrize("recovered", [False, True], ids=["loaded", "recovered"])
def test_memory_of_a_rank(tmp_path: Path, kind: str, recovered: bool) -> None:
    """Four layers of 13B, its vocabulary, Python and torch."""
    pair = sparse.write_sparse_pair(tmp_path, replace(PRESETS["13b"], layers=4))
    peak, held = measured(Share(0, 2), kind, *pair[: 2 if recovered else 1])
    assert held < peak <= held + BESIDE


@pytest.mark.slow
@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(("kind", "ranks"), [("", 4), ("int8", 2)])
def test_memory_of_a_rank_of_a_whole_model(tmp_path: Path, kind: str, ranks: int) -> None:
    base, _ = sparse.write_sparse_pair(tmp_path, PRESETS["13b"])
    peak, held = measured(Share(0, ranks), kind, base)
    print(f"{peak >> 20} MiB at most for a share of {held >> 20}")
    assert held < peak <= held + BESIDE
