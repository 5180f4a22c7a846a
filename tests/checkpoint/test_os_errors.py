"""Links that point nowhere are named, in place of files that would be called absent."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import fakes
import pytest
import tiny

from baize_engine import Engine, recover
from baize_engine.checkpoint.os_errors import broken_link
from baize_engine.errors import BaizeError, CheckpointError

SETTINGS = {"device": "cpu", "progress": False}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


@pytest.mark.parametrize("what", ["folder", "shard", "index", "config.json"])
def test_a_link_that_points_nowhere_is_called_broken(pair: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    names = {"shard": "pytorch_model-00001-of-00002.bin", "index": "pytorch_model.bin.index.json"}
    victim = pair[1] if what == "folder" else pair[1] / names.get(what, what)
    shutil.move(victim, tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "gone")
    with pytest.raises(
        BaizeError, match=rf"{victim} is a broken link: it points to {tmp_path}/gone, and nothing is there"
    ):
        recover(*pair, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer.model", "tokenizer_config.json", "LICENSE", "baize_manifest.json"]
)
@pytest.mark.parametrize("target", ["gone", "itself", "a file/x", "gone\x1b[2J"])
def test_a_broken_link_is_no_absent_file(pair: tuple[Path, Path], tmp_path: Path, name: str, target: str) -> None:
    """A result without the tokenizer, since its store was not mounted, would be told nobody."""
    victim, elsewhere = pair[1] / name, tmp_path / target
    if target == "a file/x":
        elsewhere.parent.touch()
    if name == "tokenizer_config.json":
        (pair[1] / "tokenizer.model").write_bytes(fakes.small_model())
    victim.symlink_to(victim if target == "itself" else elsewhere)
    with pytest.raises(CheckpointError, match=rf"{victim} is a broken link: it points to {tmp_path}/") as refused:
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "out").exists()
    if name == "tokenizer.model":
        with pytest.raises(CheckpointError, match=rf"{victim} is a broken link"):
            Engine.from_diff(*pair, device="cpu")


def test_a_folder_in_a_store_that_is_not_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to("not-mounted")
    with pytest.raises(
        CheckpointError, match=r"store/base is not there: .*store is a broken link: .* not-mounted, and"
    ):
        recover(tmp_path / "store" / "base", pair[1], tmp_path / "out", **SETTINGS)


def test_a_link_into_what_may_not_be_looked_into_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "closed" / "file")
    assert broken_link(tmp_path / "link") is not None

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("baize_engine.checkpoint.os_errors.os.stat", refuse)
    assert broken_link(tmp_path / "link") is None
