"""Digests of files and of ranges of them, block by block."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from baize_engine.errors import CheckpointError
from baize_engine.recovery import hashing
from baize_engine.recovery.hashing import digests, hash_file


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000])
def test_digests_of_ranges_are_hashlibs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hashing, "BLOCK", 4096)
    path, content = tmp_path / "file", os.urandom(size)
    path.write_bytes(content)
    checks, seen = [], []
    assert hash_file(path, lambda: checks.append(1), seen.append) == hashlib.sha256(content).hexdigest()
    assert len(checks) == len(seen) == -(-size // 4096)  # before each block, and after it
    assert sum(seen) == size
    found = digests(path, size // 3, size // 2, algorithms=("md5", "sha1", "sha256"))
    part = content[size // 3 : size // 3 + size // 2]
    assert found == {name: hashlib.new(name, part).hexdigest() for name in ("md5", "sha1", "sha256")}


def test_an_interruption_comes_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "BLOCK", 4096)
    path, seen = tmp_path / "file", []
    path.write_bytes(bytes(5 * 4096))

    def check() -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_file(path, check, seen.append)
    assert seen == [4096, 4096]


def test_files_that_end_early_or_are_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=f"{path}: the file ends at byte 100, wanted 20 more"):
        digests(path, 50, 70)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none is absent"):
        hash_file(tmp_path / "none")
