"""A file with a tensor, in the page cache or out of it, and reads that are watched."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from common import cached_bytes, drop_cache

from baize_engine.checkpoint import file_io
from baize_engine.checkpoint.buffers import SLACK, aligned_buffer, huge_pages
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.page_cache import is_cached
from baize_engine.checkpoint.tensor_reader import TensorReader

ELEMENTS, PIECE, OFFSET = (1 << 20) - 37, 1 << 18, 100
DIRECT = getattr(os, "O_DIRECT", 0)


def drop(path: Path) -> None:
    """Out of the page cache; the test is skipped where that cannot be."""
    try:
        drop_cache([path.parent])
    except SystemExit as error:
        pytest.skip(f"a filesystem in memory: {error}")


@contextmanager
def in_memory(path: Path) -> Iterator[None]:
    """Meanwhile it is in the page cache, which would keep it for little else; the test is skipped where there is none."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:: mmap.PAGESIZE]) == -(-len(mapped) // mmap.PAGESIZE)  # each page is read
        if cached_bytes(path) < len(mapped):
            pytest.skip("this filesystem keeps no files in memory, or there is too little")
        yield


def read(entry: TensorEntry, slack: int = SLACK, piece: int = PIECE, direct: bool = True) -> bytes:
    found, buffer = b"", aligned_buffer(4 * piece + slack)
    with TensorReader(entry, direct) as reader:
        for begin in range(0, ELEMENTS, piece):
            reader.prefetch(begin + piece, begin + 2 * piece)
            found += bytes(reader.read(begin, min(begin + piece, ELEMENTS), buffer))
    return found


def watched(
    monkeypatch: pytest.MonkeyPatch, direct: Callable[[int, list[memoryview], int], int] | None = None
) -> list[bool]:
    """Of each read that may wait, whether it went past the page cache; `direct` stands in for those that did."""
    preadv, seen = os.preadv, []

    def watching(fd: int, views: list[memoryview], offset: int, *flags: int) -> int:
        past = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & DIRECT)
        if not flags:
            seen.append(past)
        return direct(fd, views, offset) if direct is not None and past else preadv(fd, views, offset, *flags)

    monkeypatch.setattr(file_io.os, "preadv", watching)
    return seen


def takes_direct(folder: Path) -> bool:
    if not DIRECT or not huge_pages():
        return False
    try:
        os.close(os.open(folder / "weights", os.O_RDONLY | DIRECT))
    except OSError:
        return False
    return True


def probed(path: Path) -> bool | None:
    with open(path, "rb") as file:
        found = is_cached(file.fileno(), path.stat().st_size // 2, str(path))
    drop(path)
    return found
