"""What the page cache holds of a file, as the system tells it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from input_files import in_memory

from baize_engine.checkpoint import file_io, page_cache
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.page_cache import is_cached
from baize_engine.errors import CheckpointError


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
        with in_memory(entry.path):
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
