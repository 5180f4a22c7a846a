"""Reads of files: past the page cache and through it, what is left there, and what is refused."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes
import pytest
import tiny
from common import cached_bytes
from input_files import DIRECT, ELEMENTS, OFFSET, PIECE, drop, in_memory, probed, read, takes_direct, watched

from baize_engine import Engine, recover
from baize_engine.checkpoint import file_io
from baize_engine.checkpoint.buffers import PAGE, SLACK, aligned_buffer
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import InputFile, open_read, open_regular, read_whole
from baize_engine.errors import CheckpointError


def test_the_page_cache_is_left_as_it_was(entry: TensorEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    seen = watched(monkeypatch)
    for _ in range(5):
        with in_memory(entry.path):
            pass
        seen.clear()
        assert read(entry) == content
        assert seen
        if not any(seen) and cached_bytes(entry.path) >= len(content):
            break
    else:  # once, the system may have needed the memory for something else
        pytest.fail("read past the page cache, or no longer in it")
    drop(entry.path)
    if probed(entry.path) is not False:
        pytest.skip("this filesystem cannot tell what is in memory, or is as fast")
    for _ in range(2):  # nor does the first leave what makes the second believe so
        seen.clear()
        assert read(entry) == content
        direct = takes_direct(entry.path.parent)
        assert any(seen) == direct
        assert cached_bytes(entry.path) < (1 if direct else 1 << 20)  # the pages that two pieces share may stay


def test_where_it_goes_through_the_page_cache(
    entry: TensorEntry, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None]
) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    seen = watched(monkeypatch)

    def through(**how: Any) -> bool:
        cold(entry.path)
        seen.clear()
        assert read(entry, **how) == content
        assert cached_bytes(entry.path) < 1 << 20  # what was read ahead may stay
        return not all(seen)

    assert through(direct=False)
    assert through(slack=0, piece=1 << 16)  # some pieces have no room
    monkeypatch.setattr(file_io, "huge_pages", lambda: False)
    assert through()


def test_reads_that_stop_short_go_on(
    entry: TensorEntry, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None]
) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    preadv = os.preadv
    for most in (64 * PAGE, 100_000, 3 * PAGE + 7):
        cold(entry.path)
        with monkeypatch.context() as patched:
            seen = watched(patched, lambda fd, views, at, most=most: min(most, preadv(fd, [views[0][: 1 << 20]], at)))
            assert read(entry) == content
        assert any(seen) == takes_direct(entry.path.parent)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_filesystem_that_refuses_is_read_as_before(
    entry: TensorEntry, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None], number: int
) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    cold(entry.path)
    refused = []

    def refuse(*_: object) -> int:
        refused.append(1)
        raise OSError(number, os.strerror(number))

    seen = watched(monkeypatch, refuse)
    assert read(entry) == content
    assert len(refused) == takes_direct(entry.path.parent)
    assert seen.count(False) >= ELEMENTS // PIECE


def test_without_another_descriptor_it_is_read_as_before(
    entry: TensorEntry, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None]
) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    cold(entry.path)
    seen, usual = watched(monkeypatch), os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & DIRECT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return usual(path, flags, *mode)

    monkeypatch.setattr(file_io.os, "open", refuse)
    assert read(entry) == content
    assert not any(seen)


def test_a_disk_that_fails_past_the_page_cache(
    entry: TensorEntry, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None]
) -> None:
    if not takes_direct(entry.path.parent):
        pytest.skip("no reads past the page cache here")
    cold(entry.path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    watched(monkeypatch, fail)
    with pytest.raises(CheckpointError, match=r"weights: w: byte 0 cannot be read \(Input/output error\)"):
        read(entry)


def test_threads_that_read_one_file_when_the_filesystem_refuses(
    monkeypatch: pytest.MonkeyPatch, entry: TensorEntry, cold: Callable[[Path], None]
) -> None:
    """Each read past the cache is refused once both are under way."""
    content, both, refused = entry.path.read_bytes(), threading.Barrier(2, timeout=60), []

    def refusing(*_: object) -> int:
        both.wait()
        refused.append(threading.get_ident())
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    cold(entry.path)
    with closing(InputFile(entry.path, 0, len(content), "file: tensor", True)) as file:
        if file._direct is None:
            pytest.skip("this filesystem takes no reads past the page cache, or cannot tell what is in it")
        past, preadv = file._direct, os.preadv
        monkeypatch.setattr(file_io.os, "preadv", lambda fd, *a: refusing() if fd == past else preadv(fd, *a))
        half = len(content) // 2
        with ThreadPoolExecutor(2) as pool:
            parts = pool.map(lambda begin: bytes(file.read(begin, half, aligned_buffer(half + SLACK))), (0, half))
            assert b"".join(parts) == content[: 2 * half]
        assert len(set(refused)) == 2
        assert bytes(file.read(3, 5, aligned_buffer(4096))) == content[3:8]
        assert len(refused) == 2


SETTINGS = {"device": "cpu", "progress": False}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "config.json", "tokenizer_config.json"])
def test_git_lfs_pointers_are_named(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (pair[1] / "tokenizer.model").write_bytes(fakes.small_model())
    (pair[1] / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match=rf"{pair[1] / name} is a Git-LFS pointer.*git lfs pull"):
        recover(*pair, tmp_path / "out", **SETTINGS)
    with pytest.raises(CheckpointError, match=rf"{pair[1] / name} is a Git-LFS pointer.*git lfs pull"):
        Engine.from_diff(*pair, device="cpu")


def test_a_tokenizer_that_is_a_git_lfs_pointer(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "tokenizer.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match=rf"{path} is a Git-LFS pointer"):
        Engine.from_pretrained(pair[0], device="cpu")


def test_only_files_are_opened_and_nobody_waits_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(CheckpointError, match="is a folder or device, wanted a file"):
            open_regular(tmp_path / name)
    with pytest.raises(CheckpointError, match="none is absent"):
        open_regular(tmp_path / "none")


def test_a_whole_file_has_at_most_so_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_whole(path, 5) == b"12345"
    with pytest.raises(CheckpointError, match="more than 4 bytes of JSON"):
        read_whole(path, 4, " of JSON")


@pytest.mark.parametrize("most", [None, 1, 7])
def test_more_views_than_one_call_takes_are_filled_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """Also where each call brings only `most` bytes."""
    path, preadv, sizes = tmp_path / "file", os.preadv, []
    content = os.urandom(3 * file_io.MOST_VIEWS + 5)
    path.write_bytes(content)

    def few(fd: int, views: list[memoryview], offset: int) -> int:
        sizes.append(len(views))
        return preadv(fd, views if most is None else [views[0][:most]], offset)

    monkeypatch.setattr(file_io.os, "preadv", few)
    memory = bytearray(len(content) - 2)
    views = [memoryview(memory)[at : at + 3] for at in range(0, len(memory), 3)]
    fd = open_read(path)
    try:
        file_io.read_scattered(fd, views, 2, "it")
        assert memory == content[2:]
        assert max(sizes) <= file_io.MOST_VIEWS
        with pytest.raises(CheckpointError, match=f"it: the file ends at byte {len(content)}, wanted 1 more"):
            file_io.read_into(fd, memoryview(bytearray(5)), len(content) - 4, "it")
    finally:
        os.close(fd)
