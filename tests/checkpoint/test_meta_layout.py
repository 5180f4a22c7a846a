"""Meta's original layout as a base: the same bits as converting first, at any number of files, and every lie named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_meta
import torch

from baize_engine import make_diff, recover
from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.meta_layout import read_meta
from baize_engine.errors import BaizeError, CheckpointError, ConfigError, MismatchError
from baize_engine.recovery import stream as streaming

CONFIG = tiny.config(hidden_size=64, intermediate_size=160, num_attention_heads=8, num_key_value_heads=8)


def write_diff(folder: Path, cfg: dict, extra: int = 1) -> Path:
    grown = {**cfg, "vocab_size": cfg["vocab_size"] + extra, "torch_dtype": "float32"}
    diff = {**tiny.state(grown, 1, scale=0.003), **tiny.inv_freq(cfg, scale=0.0)}
    for name in diff:
        if name.endswith("norm.weight"):
            diff[name] = diff[name] - 1
    return tiny.write_model(folder, grown, diff, "bin", 2)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_bits_are_those_of_converting_first(tmp_path: Path, shards: int) -> None:
    files = tiny_meta.random_shards(CONFIG, shards)
    meta = tiny_meta.write_meta(tmp_path / "LLaMA" / "7B", CONFIG, files)
    (tmp_path / "LLaMA" / "tokenizer.model").write_bytes(b"pieces")
    converted = tiny.write_model(tmp_path / "hf", CONFIG, tiny_meta.convert(CONFIG, files))
    diff = write_diff(tmp_path / "diff", CONFIG)
    direct = recover(meta, diff, tmp_path / "direct", device="cpu", progress=False)
    detour = recover(converted, diff, tmp_path / "detour", device="cpu", progress=False)
    assert direct.manifest.tensors == detour.manifest.tensors
    assert direct.extra_rows == 1
    assert [file.name for file in direct.manifest.sources["base"]] == [
        f"consolidated.{n:02d}.pth" for n in range(shards)
    ]
    assert (tmp_path / "direct" / "tokenizer.model").read_bytes() == b"pieces"


def test_grouped_heads_and_an_embedding_split_by_rows(tmp_path: Path) -> None:
    cfg = {**CONFIG, "num_key_value_heads": 4}
    files = tiny_meta.random_shards(cfg, 4, embedding_by_rows=True)
    meta = tiny_meta.write_meta(tmp_path / "meta", cfg, files, n_kv_heads=4, vocab_size=96, rope_theta=10000.0)
    converted = tiny.write_model(tmp_path / "hf", cfg, tiny_meta.convert(cfg, files, embedding_by_rows=True))
    diff = write_diff(tmp_path / "diff", cfg, extra=0)
    direct = recover(meta, diff, tmp_path / "direct", device="cpu", progress=False)
    assert (
        direct.manifest.tensors
        == recover(converted, diff, tmp_path / "d", device="cpu", progress=False).manifest.tensors
    )


def test_small_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that cut rows, heads and files: a head of 96 rows is no whole number of chunks."""
    cfg = {**CONFIG, "hidden_size": 768, "vocab_size": 640, "num_hidden_layers": 1, "intermediate_size": 352}
    files = tiny_meta.random_shards(cfg, 2)
    meta = tiny_meta.write_meta(tmp_path / "meta", cfg, files)
    diff = write_diff(tmp_path / "diff", cfg)
    whole = recover(meta, diff, tmp_path / "whole", device="cpu", progress=False)
    run = streaming.stream
    monkeypatch.setattr("baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "piece": 65536}))
    assert recover(meta, diff, tmp_path / "p", device="cpu", progress=False).manifest.tensors == whole.manifest.tensors


def test_make_diff_takes_it_too(tmp_path: Path) -> None:
    files = tiny_meta.random_shards(CONFIG, 2)
    meta = tiny_meta.write_meta(tmp_path / "meta", CONFIG, files)
    converted = tiny.write_model(tmp_path / "hf", CONFIG, tiny_meta.convert(CONFIG, files))
    tuned = tiny.write_model(tmp_path / "tuned", CONFIG, tiny.state(CONFIG, 7))
    one = make_diff(meta, tuned, tmp_path / "one", device="cpu", progress=False)
    assert (
        one.manifest.tensors
        == make_diff(converted, tuned, tmp_path / "two", device="cpu", progress=False).manifest.tensors
    )


def test_transformers_layout_comes_first(tmp_path: Path) -> None:
    tiny_meta.write_meta(tmp_path, CONFIG, tiny_meta.random_shards(CONFIG, 1))
    tiny.write_model(tmp_path, CONFIG, tiny.state(CONFIG))
    assert [path.name for path in read_base(tmp_path).index.files] == ["model.safetensors"]


def drop(name: str, *numbers: int):
    return lambda files: [files[n].pop(name) for n in numbers]


SPOILT = {
    "a tensor in one file only": (drop("norm.weight", 1), {}, "norm.weight is in only one of it and consolidated.00.pth"),
    "no embedding": (drop("tok_embeddings.weight", 0, 1), {}, "no tok_embeddings.weight or output.weight"),
    "unknown tensor": (lambda f: [x.update(extra=torch.ones(2)) for x in f], {}, "extra: not a tensor of a LLaMA"),
    "unequal parts": (lambda f: f[1].update({"norm.weight": torch.ones(3).half()}), {}, r"norm\.weight is float16 \[3\]"),
    "another type": (lambda f: f[1].update({"norm.weight": torch.ones(64)}), {}, r"norm\.weight is float32"),
    "three dimensions": (
        lambda f: [x.update({"output.weight": torch.ones(1, 2, 3)}) for x in f], {}, "wanted a vector or a matrix"),
    "another dim": (lambda f: None, {"dim": 128}, r"make a matrix of \[96, 64\], wanted \[96, 128\]"),
    "vocabulary": (lambda f: None, {"vocab_size": 95}, "params.json says vocab_size 95"),
    "heads that tear": (lambda f: None, {"n_heads": 1}, "wanted whole heads of 64"),
    "odd heads": (lambda f: None, {"n_heads": 64}, "not an even number of rows a head"),
    "no heads": (lambda f: None, {"n_heads": 0}, "n_heads is 0, wanted a positive number"),
    "heads of all rows": (lambda f: None, {"dim": 1 << 20, "n_heads": 2}, "heads of 524288 rows, wanted at most 1024"),
    "theta": (lambda f: None, {"rope_theta": 0}, r"rope_theta is 0\.0, wanted a positive number"),
    "eps": (lambda f: None, {"norm_eps": "tiny"}, "norm_eps is 'tiny', wanted a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_lies_are_named(tmp_path: Path, case: str) -> None:
    change, params, message = SPOILT[case]
    files = tiny_meta.random_shards(CONFIG, 2)
    change(files)
    tiny_meta.write_meta(tmp_path, CONFIG, files, **params)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        read_meta(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    tiny_meta.write_meta(tmp_path, CONFIG, tiny_meta.random_shards(CONFIG, 4))
    (tmp_path / "consolidated.03.pth").unlink()  # the last: only the shapes can tell
    with pytest.raises(CheckpointError, match=r"3 file\(s\) make a matrix.*are all consolidated\.\*\.pth here\?"):
        read_meta(tmp_path)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth is missing"):
        read_meta(tmp_path)
    (tmp_path / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json is absent"):
        read_meta(tmp_path)


def test_a_diff_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    meta = tiny_meta.write_meta(tmp_path / "meta", CONFIG, tiny_meta.random_shards(CONFIG, 2), norm_eps=1e-5)
    diff = write_diff(tmp_path / "diff", CONFIG)
    with pytest.raises(MismatchError, match=r"rms_norm_eps is 1e-05 in .*params\.json and 1e-06"):
        recover(meta, diff, tmp_path / "out", device="cpu", progress=False)
    config = json.loads((diff / "config.json").read_text())
    (diff / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}))
    assert not (tmp_path / "out").exists()
    recover(meta, diff, tmp_path / "out", device="cpu", progress=False)  # positions are not told by params.json


def test_old_files_get_the_remedy_and_only_a_base_may_be_meta(tmp_path: Path) -> None:
    meta = tiny_meta.write_meta(tmp_path / "meta", CONFIG, [])
    torch.save({"norm.weight": torch.ones(2)}, meta / "consolidated.00.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(BaizeError, match=r"before 1\.6.*python -c"):
        read_base(meta)
    with pytest.raises(CheckpointError, match=r"recover and make_diff take as a base"):
        read_index(meta)
