"""Reading a tensor by ranges: the bytes, past the page cache and through it, and what is left there."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from common import cached_bytes, drop_cache

from baize_engine.checkpoint import file_io, page_cache
from baize_engine.checkpoint.buffers import PAGE, SLACK, aligned_buffer, huge_pages
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.page_cache import is_cached
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError

ELEMENTS, PIECE, OFFSET = (1 << 20) - 37, 1 << 18, 100
DIRECT = getattr(os, "O_DIRECT", 0)


@pytest.fixture
def entry(tmp_path: Path) -> TensorEntry:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(OFFSET + 4 * ELEMENTS))
    return TensorEntry("w", "float32", (ELEMENTS,), path, OFFSET)


def drop(path: Path) -> None:
    """Out of the page cache; the test is skipped where that cannot be."""
    try:
        drop_cache([path.parent])
    except SystemExit as error:
        pytest.skip(f"a filesystem in memory: {error}")


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`drop`, and no probing: some disks are too fast to be asked."""
    monkeypatch.setattr(file_io, "is_cached", lambda *_: False)
    return drop


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


def test_the_page_cache_is_left_as_it_was(entry: TensorEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    seen = watched(monkeypatch)
    assert read(entry) == content
    assert seen
    assert not any(seen)
    assert cached_bytes(entry.path) >= len(content)  # it was there: written a moment ago
    drop(entry.path)
    if probed(entry.path) is not False:
        pytest.skip("this filesystem cannot tell what is in memory, or is as fast")
    for _ in range(2):  # nor does the first leave what makes the second believe so
        seen.clear()
        assert read(entry) == content
        direct = takes_direct(entry.path.parent)
        assert any(seen) == direct
        assert cached_bytes(entry.path) < (1 if direct else 1 << 20)  # the pages that two pieces share may stay


@pytest.mark.parametrize("piece", [1, 333, 1024, 5000])
@pytest.mark.parametrize("offset", [0, 1, 4, 64, 4092, 4096, 4160, 10000])
def test_any_range_of_a_cold_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None], offset: int, piece: int
) -> None:
    content = os.urandom(offset + 4 * 9000)
    path = tmp_path / "weights"
    path.write_bytes(content)
    cold(path)
    seen = watched(monkeypatch)
    buffer = aligned_buffer(4 * piece + SLACK)
    with TensorReader(TensorEntry("w", "float32", (9000,), path, offset), direct=True) as reader:
        for begin in range(0, 9000, max(piece, 90)):
            end = min(begin + piece, 9000)
            found = reader.read(begin, end, buffer)
            assert found == content[offset + 4 * begin : offset + 4 * end]
    assert all(seen) == (offset % 4 == 0 and takes_direct(tmp_path))  # values in odd places are read as before


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


def test_a_file_that_was_cut(entry: TensorEntry, cold: Callable[[Path], None]) -> None:
    os.truncate(entry.path, 3 << 20)
    cold(entry.path)
    with pytest.raises(CheckpointError, match=r"weights: w: the file ends at byte 3145728, wanted \d+ more"):
        read(entry)


def test_what_mincore_says(monkeypatch: pytest.MonkeyPatch, entry: TensorEntry, cold: Callable[[Path], None]) -> None:
    """Filesystems such as overlays take no reads that may not wait."""
    if not hasattr(ctypes.CDLL(None), "mincore"):
        pytest.skip("this system has no mincore")
    preadv, size = os.preadv, entry.path.stat().st_size

    def refusing(fd: int, views: list[Any], offset: int, *flags: int) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(fd, views, offset)

    monkeypatch.setattr(file_io.os, "preadv", refusing)
    probes = (0, size // 2, size - 1)
    with open(entry.path, "rb") as file:
        assert [page_cache.is_resident(file.fileno(), probe) for probe in probes] == [True, True, True]
        assert page_cache.is_resident(file.fileno(), size) is False
        cold(entry.path)
        monkeypatch.undo()
        monkeypatch.setattr(file_io.os, "preadv", refusing)
        assert [is_cached(file.fileno(), probe, "file") for probe in probes] == [False, False, False]
        monkeypatch.setattr(os, "geteuid", lambda: entry.path.stat().st_uid + 1)
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert is_cached(file.fileno(), 0, "file") is None


@pytest.mark.parametrize(
    ("number", "known"), [(errno.EOPNOTSUPP, True), (errno.EAGAIN, False), (errno.EIO, CheckpointError)]
)
def test_probes_that_are_refused_and_disks_that_fail(
    monkeypatch: pytest.MonkeyPatch, entry: TensorEntry, number: int, known: object
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_io.os, "preadv", refuse)
    with open(entry.path, "rb") as file:
        if known is not CheckpointError:
            assert is_cached(file.fileno(), 0, "file: tensor") is known
            return
        with pytest.raises(CheckpointError, match=r"file: tensor: byte 7 cannot be read \(Input/output error\)"):
            is_cached(file.fileno(), 7, "file: tensor")
