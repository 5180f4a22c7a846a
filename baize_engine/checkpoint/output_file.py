"""A file that is written at offsets, past the page cache where that works. Knows no tensors."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from baize_engine.checkpoint.buffers import NOT_DIRECT, PAGE
from baize_engine.checkpoint.os_errors import writing


class OutputFile:
    """A new file of known size (with `reopen`, an existing one), written at offsets from any thread.

    Aligned writes bypass the page cache (O_DIRECT) where the filesystem allows: measured 2-8 times faster than buffered
    writes with fsync. All others go through the page cache. Space is allocated at once, so that a full disk shows before the
    long work and not half-way.

    What the system refuses, here or in a method, is an OutputError naming the file; its errno is EEXIST if a new file exists
    already.
    """

    def __init__(self, path: Path, nbytes: int, reopen: bool = False) -> None:
        self.path = path
        how = 0 if reopen else os.O_CREAT | os.O_EXCL
        with writing(path, "be opened for writing"):
            self._buffered = os.open(path, os.O_RDWR | how | os.O_CLOEXEC, 0o644)
        self._direct: int | None = None
        try:
            with writing(path, f"take {nbytes} bytes"):
                _allocate(self._buffered, nbytes)
                self._direct = _open_direct(path)
        except BaseException:
            os.close(self._buffered)
            raise
        self._open = [self._buffered] + ([] if self._direct is None else [self._direct])

    def write_at(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at byte `offset`. Whole pages of page-aligned memory go directly to the disk."""
        with writing(self.path):
            done = self._write_direct(offset, view) if self._direct is not None else 0
            _write_all(self._buffered, view[done:], offset + done)

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """Write the whole pages of `view` past the page cache, or nothing. Returns the number of bytes written."""
        whole = len(view) - len(view) % PAGE
        if offset % PAGE or not whole or self._direct is None:
            return 0
        try:
            _write_all(self._direct, view[:whole], offset)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
            return 0
        return whole

    def sync(self) -> None:
        """Wait until the data is on the disk."""
        with writing(self.path):
            os.fsync(self._buffered)

    def close(self) -> None:
        """Close the file, if it is open. Closes every descriptor even if the system reports an error for one."""
        fds, self._open = self._open, []
        with writing(self.path), ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.pwrite(fd, view[done:], offset + done)
        if count == 0:
            raise OSError(errno.EIO, "the system wrote 0 bytes")
        done += count


def _allocate(fd: int, nbytes: int) -> None:
    if nbytes == 0:
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, nbytes)  # a filesystem or system without allocation


def _open_direct(path: Path) -> int | None:
    """A descriptor for O_DIRECT writes, or None if the system or filesystem has none."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    try:
        return os.open(path, os.O_WRONLY | flag | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NOT_DIRECT:
            return None
        raise


def sync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in `folder` survive a crash of the system."""
    with writing(folder, "be synced"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
