"""The index of a folder: every form of checkpoint, and everything a folder can be instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from baize_engine.checkpoint.index import read_index
from baize_engine.errors import CheckpointError


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_form_gives_the_same_tensors(tmp_path: Path, form: str, shards: int) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg, 0, torch.float16)
    index = read_index(tiny.write_model(tmp_path, cfg, tensors, form, shards))
    assert len(index.files) == shards
    assert index.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry = index.entries[name]
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            assert file.read(entry.nbytes) == tensor.view(torch.uint8).numpy().tobytes()


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    cfg = tiny.config()
    for form in ("bin", "safetensors"):
        tiny.write_model(tmp_path, cfg, tiny.state(cfg), form)
    assert [path.name for path in read_index(tmp_path).files] == ["model.safetensors"]


def edit(folder: Path, change: object) -> None:
    path = folder / "pytorch_model.bin.index.json"
    raw = json.loads(path.read_text())
    change(raw["weight_map"])  # type: ignore[operator]
    path.write_text(json.dumps(raw))


FIRST = "pytorch_model-00001-of-00002.bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(ghost=FIRST), f"ghost is said to be in {FIRST}, and no shard has it"),
        (
            lambda m: m.update({"lm_head.weight": FIRST}),
            r"lm_head\.weight is said to be in .*, and is in pytorch_model-00002",
        ),
        (lambda m: m.pop("lm_head.weight"), r"holds lm_head\.weight, which the index does not name"),
        (lambda m: m.update({"lm_head.weight": "../secret.bin"}), "wanted the name of a file in this folder"),
        (lambda m: m.update({"lm_head.weight": "/etc/passwd"}), "wanted the name of a file in this folder"),
        (lambda m: m.update({"lm_head.weight": ".."}), "wanted the name of a file in this folder"),
        (lambda m: m.update({"lm_head.weight": 7}), "wanted the name of a file in this folder"),
        (lambda m: m.update({"lm_head.weight": "gone.bin"}), r"1 of 3 shards are missing: gone\.bin"),
        (lambda m: m.clear(), "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, change: object, message: str) -> None:
    cfg = tiny.config()
    tiny.write_model(tmp_path, cfg, tiny.state(cfg), "bin", 2)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    cfg = tiny.config()
    tensors = tiny.state(cfg)
    tiny.write_model(tmp_path, cfg, tensors, "bin", 2)
    torch.save({"lm_head.weight": tensors["lm_head.weight"], "model.norm.weight": torch.ones(32)}, tmp_path / FIRST)
    with pytest.raises(CheckpointError, match=r"is also in pytorch_model-0000"):
        read_index(tmp_path)


def test_what_a_folder_can_be_instead(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no weights: looked for model\.safetensors .*it is empty"):
        read_index(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"it has notes\.txt"):
        read_index(tmp_path)
    with pytest.raises(CheckpointError, match="is a file, wanted a folder"):
        read_index(tmp_path / "notes.txt")
    (tmp_path / "consolidated.00.pth").write_text("x")
    with pytest.raises(CheckpointError, match="Meta's original layout"):
        read_index(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA adapter"):
        read_index(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "b", "a": "c"}}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        read_index(tmp_path)


def test_a_number_of_31_digits_that_is_not_used_is_nobodys_business(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path, tiny.config(), tiny.state(tiny.config()), shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "metadata": {"total_size": 10**30, "x": None}}))
    assert len(read_index(folder).entries) == 21
