"""Ranged file reads and writes into reused, page-aligned memory.

The standard library's preadv and pwrite release the GIL and touch no fresh memory, so no C++ is needed here. Fresh
memory is what is slow: on virtual machines its first touch ran at 0.3-1.7 GB/s, below the disk.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

from baize_engine.checkpoint.os_errors import reading, writing
from baize_engine.errors import CheckpointError, OutputError

PAGE = 4096  # what O_DIRECT asks of offset, length and address on every disk in use
MOST_VIEWS = 1024  # that one call reads into: the least that systems allow (IOV_MAX)


def aligned_buffer(nbytes: int) -> memoryview:
    """`nbytes` of zeroed, page-aligned, writable memory; pages are taken from the system when first touched."""
    return memoryview(mmap.mmap(-1, max(PAGE, nbytes)))[:nbytes]


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading. CheckpointError where `path` is no file, such as a pipe, whose opening could wait forever."""
    with reading(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # no effect on files
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CheckpointError(f"{path} is a folder or device, wanted a file")
        return fd


def open_read(path: Path) -> int:
    """A descriptor for sequential ranged reads. The caller closes it. CheckpointError as for `open_regular`."""
    fd = open_regular(path)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return fd


def read_into(fd: int, view: memoryview, offset: int, what: str) -> None:
    """Fills `view` from byte `offset`; a short file or a failing disk raises CheckpointError naming `what`."""
    read_scattered(fd, [view], offset, what)


def read_scattered(fd: int, views: list[memoryview], offset: int, what: str) -> None:
    """Fills `views` one after another from byte `offset`. Errors as for `read_into`."""
    for first in range(0, len(views), MOST_VIEWS):
        pending = views[first : first + MOST_VIEWS]
        wanted = sum(map(len, pending))
        while wanted:
            with reading(f"{what}: byte {offset}"):
                got = os.preadv(fd, pending, offset)
            if got == 0:
                raise CheckpointError(
                    f"{what}: the file ends at byte {offset}, wanted {wanted} more (was it changed or cut?)"
                )
            offset += got
            wanted -= got
            pending = _rest(pending, got)


def _rest(views: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `views` after their first `done` bytes."""
    for number, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[number + 1 :]]
        done -= len(view)
    return []


def prefetch(fd: int, offset: int, nbytes: int) -> None:
    """Asks the system to start reading a range now, so that the disk works while the processor does."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_WILLNEED)


def is_cached(fd: int, offset: int, what: str) -> bool:
    """Whether the page at `offset` is in the page cache, by a read that may not wait; True where the system cannot tell,
    False behind the file's end.

    CheckpointError naming `what` where the disk fails.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # filesystems without such reads
            return True
        with reading(f"{what}: byte {offset}"):
            raise


def forget(fd: int, offset: int, nbytes: int) -> None:
    """Lets the system use the whole pages of a range of the page cache for something else; no more than advice."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


class OutputFile:
    """A new file of known size (or with `reopen` one that exists), written at offsets from any thread.

    Aligned writes bypass the page cache (O_DIRECT) where the filesystem takes them: measured 2-8 times faster than
    buffered writes with fsync. Everything else goes through the page cache. The space is allocated at once, so that a
    full disk shows before the long work and not half-way. Whatever the system refuses is an OutputError that names the
    file; FileExistsError where a new one exists.
    """

    def __init__(self, path: Path, nbytes: int, reopen: bool = False) -> None:
        self.path = path
        how = 0 if reopen else os.O_CREAT | os.O_EXCL
        try:
            self._buffered = os.open(path, os.O_RDWR | how | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise
        except OSError as error:
            raise OutputError(error.errno, f"{path} cannot be opened for writing ({error.strerror})") from error
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
        """Writes all of `view` at byte `offset`. Whole pages from page-aligned memory go directly to the disk."""
        with writing(self.path):
            done = self._write_direct(offset, view) if self._direct is not None else 0
            _write_all(self._buffered, view[done:], offset + done)

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """The bytes of `view` that went past the page cache: its whole pages, or none."""
        whole = len(view) - len(view) % PAGE
        if offset % PAGE or not whole or self._direct is None:
            return 0
        try:
            _write_all(self._direct, view[:whole], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the filesystem or this address does not take direct writes
                raise
            return 0
        return whole

    def sync(self) -> None:
        """Returns when the data is on the disk."""
        with writing(self.path):
            os.fsync(self._buffered)

    def close(self) -> None:
        """Closes it, if it is open. Every descriptor is closed also where the system then tells of an error."""
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
        os.ftruncate(fd, nbytes)  # a filesystem (or system) without allocation


def _open_direct(path: Path) -> int | None:
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    try:
        return os.open(path, os.O_WRONLY | flag | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def sync_folder(folder: Path) -> None:
    """Makes names created, renamed or removed in `folder` survive a crash of the system."""
    with writing(folder, "be synced"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
