"""Folders as they lie on people's disks: without an index, unpacked a level too deep, named with "~"."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_meta
import torch
from folders import load, same_bits

from baize_engine import Engine, quantize, recover, verify
from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import CheckpointError, RequestError

SETTINGS = {"device": "cpu", "progress": False}
NO_BLOCKS = (torch.zeros(1).expand(4), torch.zeros(3, 4).t())  # tensors that are no one range of a file


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


def without_index(folder: Path) -> Path:
    for path in folder.glob("*.index.json"):
        path.unlink()
    return folder


def result(pair: tuple[Path, Path], out: Path, **more: object) -> dict[str, torch.Tensor]:
    recover(*pair, out, **SETTINGS, **more)
    assert verify(out).ok
    return load(out)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_shards_whose_names_tell_that_they_are_all(tmp_path: Path, form: str) -> None:
    pair = tiny.write_pair(tmp_path, base_form=form, diff_form=form)
    wanted = result(pair, tmp_path / "wanted")
    with Engine.from_diff(*pair, device="cpu") as engine:
        ids = engine.generate([[1, 5, 9]])[0].token_ids
    same_bits(result(tuple(map(without_index, pair)), tmp_path / "out"), wanted)
    with Engine.from_diff(*pair, device="cpu") as engine:
        assert engine.generate([[1, 5, 9]])[0].token_ids == ids
    with Engine.from_pretrained(pair[0], device="cpu") as engine:
        assert len(engine.generate([[1, 5, 9]])[0].token_ids) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "pytorch_model-00002-of-00003.bin").unlink(),
            "has 2 shard.s. such as .*, and shard 2 of 3 is missing",
        ),
        (
            lambda f: shutil.copy(f / "pytorch_model-00001-of-00003.bin", f / "pytorch_model-00001-of-00002.bin"),
            "shards of different sets, pytorch_model-0000.-of-00002.bin and pytorch_model-0000.-of-00003.bin",
        ),
        (
            lambda f: shutil.copy(f / "pytorch_model-00001-of-00003.bin", f / "pytorch_model-00004-of-00003.bin"),
            "has 4 shards such as .*, and 3 are wanted",
        ),
    ],
)
def test_shards_without_an_index_that_are_not_the_whole(
    pair: tuple[Path, Path], change: Callable[[Path], object], message: str
) -> None:
    change(without_index(pair[0]))
    with pytest.raises(CheckpointError, match=message):
        read_index(pair[0])


def test_an_index_or_a_single_file_goes_before_shards_without_one(tmp_path: Path) -> None:
    """Shards of a download that was begun and left must not hide the model that is whole."""
    cfg = tiny.config()
    tiny.write_model(tmp_path, cfg, tiny.state(cfg), "bin", 2)
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(b"")
    assert [path.suffix for path in read_index(tmp_path).files] == [".bin", ".bin"]


def test_shards_of_a_download_that_was_left_hide_no_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither others without an index, nor Meta's layout; and shards that are whole go before the latter."""
    wanted = result(pair, tmp_path / "wanted")
    without_index(pair[0])
    (pair[0] / "consolidated.00.pth").write_bytes(b"")
    for name in ("model-00001-of-00009.safetensors", "model-00003-of-00009.safetensors"):
        (pair[0] / name).write_bytes(b"")
    same_bits(result(pair, tmp_path / "out"), wanted)
    cfg = tiny.config()
    meta = tiny_meta.write_meta(tmp_path / "meta", cfg, tiny_meta.random_shards(cfg, 2))
    (meta / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    assert [path.name for path in read_base(meta).index.files] == ["consolidated.00.pth", "consolidated.01.pth"]


@pytest.mark.parametrize("inner", ["llama-7b", "models--x--y/snapshots"])
def test_a_model_in_a_folder_inside_the_folder_is_named(pair: tuple[Path, Path], tmp_path: Path, inner: str) -> None:
    outer = tmp_path / "outer"
    (outer / inner).parent.mkdir(parents=True)
    shutil.move(pair[0], outer / inner)
    with pytest.raises(
        CheckpointError, match=rf"outer holds no weights: .*{outer / inner} inside it holds some: name that"
    ):
        recover(outer, pair[1], tmp_path / "out", **SETTINGS)


def test_an_index_without_its_shards_says_so(tmp_path: Path) -> None:
    cfg = tiny.config()
    tiny.write_model(tmp_path, cfg, tiny.state(cfg), "bin", 2)
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"bin\.index\.json is there, but none of its 2 shards is: pytorch_model-00001"
    ):
        read_index(tmp_path)
    tiny.write_model(tmp_path, cfg, tiny.state(cfg), "bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin would be read without that index"):
        read_index(tmp_path)


def test_buffers_never_refuse_a_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """OpenChineseLLaMA #9: shards held inv_freq, and the index did not name it; or the other way round."""
    wanted = result(pair, tmp_path / "wanted")
    for folder, change in (
        (pair[0], lambda names: [names.pop(name) for name in list(names) if name.endswith("inv_freq")]),
        (
            pair[1],
            lambda names: names.update({"model.layers.7.self_attn.rotary_emb.inv_freq": next(iter(names.values()))}),
        ),
    ):
        path = folder / "pytorch_model.bin.index.json"
        raw = json.loads(path.read_text())
        change(raw["weight_map"])
        path.write_text(json.dumps(raw))
    shards = sorted(pair[1].glob("*.bin"))
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    for shard in shards:  # in both of them
        torch.save({**torch.load(shard, weights_only=True), **buffer}, shard)
    same_bits(result(pair, tmp_path / "out"), wanted)
    raw["weight_map"]["model.layers.8.self_attn.rotary_emb.inv_freq"] = "pytorch_model-00003-of-00003.bin"
    path.write_text(json.dumps(raw))  # a shard with nothing but buffers
    same_bits(result(pair, tmp_path / "again"), wanted)
    odd = {f"model.layers.{n}.self_attn.rotary_emb.cos_cached": each for n, each in enumerate(NO_BLOCKS)}
    torch.save({**torch.load(shards[0], weights_only=True), **odd}, shards[0])
    same_bits(result(pair, tmp_path / "odd"), wanted)
    torch.save({**torch.load(shards[0], weights_only=True), "a.weight": NO_BLOCKS[0]}, shards[0])
    with pytest.raises(CheckpointError, match=r"a\.weight: elements 0 to 4 of a storage that has 1"):
        read_index(pair[1])


def test_an_empty_path_is_told(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(pair[0])  # which "" would be
    for attempt in (
        lambda: recover("", pair[1], tmp_path / "out", **SETTINGS),
        lambda: recover(pair[0], "", tmp_path / "out", **SETTINGS),
        lambda: recover(*pair, "", **SETTINGS),
        lambda: Engine.from_pretrained("", device="cpu"),
        lambda: quantize("", tmp_path / "out"),
        lambda: verify(""),
    ):
        with pytest.raises(RequestError, match="an empty path, wanted a folder"):
            attempt()


def test_a_home_folder_is_expanded(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recover("~/base", Path("~/diff"), "~/tuned", **SETTINGS)
    assert (tmp_path / "tuned/config.json").is_file()
    assert verify("~/tuned").ok
    assert not os.path.lexists("~")
    with pytest.raises(RequestError, match="there is no home folder ~nobody-of-that-name"):
        recover("~nobody-of-that-name/x", "~/diff", "~/other", **SETTINGS)


def test_a_mistyped_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(
        "baize_engine.checkpoint.hub._fetch", lambda hub, name: pytest.fail(f"asked the hub for {name}")
    )
    assert folder_of("out/my-model") == Path("out/my-model")
    with pytest.raises(CheckpointError, match="out/my-model does not exist, wanted a folder with a model's files"):
        Engine.from_pretrained("out/my-model", device="cpu")
    (tmp_path / "owner").symlink_to("nowhere")
    assert folder_of("owner") == Path("owner")
    assert folder_of("owner/name") == Path("owner/name")
