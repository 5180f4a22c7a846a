"""Digests of files, or of ranges of them, read in blocks past the page cache where they are large."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from baize_engine.checkpoint.buffers import HUGE, SLACK, aligned_buffer
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.os_errors import stat_of
from baize_engine.interrupts import Check

BLOCK = 4 << 20  # bytes hashed at a time
THREADS = 2  # files or tensors hashed at once


def hash_file(path: Path, check: Check = lambda: None, progress: Callable[[int], None] = lambda nbytes: None) -> str:
    """SHA-256 of a whole file; `check` is called before each block, `progress` after it with its bytes."""
    return hash_range(path, 0, stat_of(path).st_size, progress, check)


def hash_range(
    path: Path,
    offset: int,
    nbytes: int,
    progress: Callable[[int], None] = lambda nbytes: None,
    check: Check = lambda: None,
) -> str:
    """SHA-256 of `nbytes` bytes from byte `offset` on; `check` and `progress` as for `hash_file`."""
    return digests_of_range(path, offset, nbytes, ("sha256",), progress, check)["sha256"]


def digests_of_range(
    path: Path,
    offset: int,
    nbytes: int,
    algorithms: Iterable[str],
    progress: Callable[[int], None] = lambda nbytes: None,
    check: Check = lambda: None,
) -> dict[str, str]:
    """As `hash_range`, for each of hashlib's algorithms that is named."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    buffer = aligned_buffer(min(BLOCK, nbytes) + SLACK)
    with closing(InputFile(path, offset, offset + nbytes, str(path), nbytes >= HUGE)) as file:
        for begin in range(0, nbytes, BLOCK):
            check()
            view = file.read(offset + begin, min(BLOCK, nbytes - begin), buffer)
            for digest in digests.values():
                digest.update(view)
            progress(len(view))
    return {name: digest.hexdigest() for name, digest in digests.items()}
