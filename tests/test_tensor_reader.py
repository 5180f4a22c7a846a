"""What reading a tensor by ranges leaves in the page cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from baize_engine.checkpoint import file_io
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import aligned_buffer, is_cached
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError

ELEMENTS, PIECE, OFFSET = 1 << 20, 1 << 18, 100


@pytest.fixture
def entry(tmp_path: Path) -> TensorEntry:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(OFFSET + 4 * ELEMENTS))
    return TensorEntry("w", "float32", (ELEMENTS,), path, OFFSET)


def cached(path: Path) -> list[bool]:
    """Of a page in the middle of each piece."""
    with open(path, "rb") as file:
        return [is_cached(file.fileno(), OFFSET + begin * 4 + PIECE * 2, "w") for begin in range(0, ELEMENTS, PIECE)]


def read(entry: TensorEntry) -> bytes:
    found, buffer = b"", aligned_buffer(4 * PIECE)
    with TensorReader(entry) as reader:
        for begin in range(0, ELEMENTS, PIECE):
            reader.prefetch(begin + PIECE, begin + 2 * PIECE)
            found += bytes(reader.read(begin, begin + PIECE, buffer))
    return found


def test_the_page_cache_is_left_as_it_was(entry: TensorEntry) -> None:
    content = entry.path.read_bytes()[OFFSET:]
    assert read(entry) == content
    assert all(cached(entry.path))  # it was there: written a moment ago
    with open(entry.path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(cached(entry.path)):
        pytest.skip("on this filesystem files stay in memory, or it cannot tell")
    assert read(entry) == content
    assert not any(cached(entry.path))


@pytest.mark.parametrize(("number", "known"), [(errno.EOPNOTSUPP, True), (errno.EAGAIN, False), (errno.EIO, None)])
def test_systems_that_cannot_tell_and_disks_that_fail(
    monkeypatch: pytest.MonkeyPatch, entry: TensorEntry, number: int, known: bool | None
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_io.os, "preadv", refuse)
    if known is not None:
        assert is_cached(0, 0, "file: tensor") is known
        return
    with pytest.raises(CheckpointError, match=r"file: tensor: byte 7 cannot be read \(Input/output error\)"):
        is_cached(0, 7, "file: tensor")
