"""Digests of files, or of ranges of them, read in blocks past the page cache where they are large."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from baize_engine.checkpoint.buffers import HUGE, SLACK, aligned_buffer
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.os_errors import stat_of
from baize_engine.interrupts import Check
from baize_engine.progress import Advance, no_progress

BLOCK = 4 << 20  # bytes hashed at a time
THREADS = 2  # files or tensors hashed at once


def hash_file(path: Path, check: Check = lambda: None, progress: Advance = no_progress) -> str:
    """SHA-256 of a whole file."""
    return digests(path, 0, stat_of(path).st_size, check, progress)["sha256"]


def digests(
    path: Path,
    offset: int,
    nbytes: int,
    check: Check = lambda: None,
    progress: Advance = no_progress,
    algorithms: Iterable[str] = ("sha256",),
) -> dict[str, str]:
    """Digests of `nbytes` bytes from byte `offset` on, by hashlib's name of each algorithm.

    `check` is called before each block, `progress` after it with its bytes.
    """
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    buffer = aligned_buffer(min(BLOCK, nbytes) + SLACK)
    with closing(InputFile(path, offset, offset + nbytes, str(path), nbytes >= HUGE)) as file:
        for begin in range(0, nbytes, BLOCK):
            check()
            view = file.read(offset + begin, min(BLOCK, nbytes - begin), buffer)
            for each in hashes.values():
                each.update(view)
            progress(len(view))
    return {name: each.hexdigest() for name, each in hashes.items()}
