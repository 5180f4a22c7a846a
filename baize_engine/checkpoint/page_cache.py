"""The system's page cache: what it holds of a file, and advice to read ahead or to forget."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress

from baize_engine.checkpoint.os_errors import reading


def prefetch(fd: int, offset: int, nbytes: int) -> None:
    """Ask the system to start reading a range now, so that the disk works while the processor does."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_WILLNEED)


def forget(fd: int, offset: int, nbytes: int) -> None:
    """Let the system drop the whole pages of a range from the page cache. This is only advice."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def is_cached(fd: int, offset: int, what: str) -> bool | None:
    """Whether the page at byte `offset` is in the page cache: False past the end of the file, None if unknown.

    Tries a read that may not wait; where there are none (on overlays), `is_resident`. Some systems then start to read the
    page: `forget` it once it has come. Leaves `fd` in the state of `open_read`, for sequential reads. Raises CheckpointError
    naming `what` if the disk fails.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return is_resident(fd, offset)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # that page, and none after it
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return is_resident(fd, offset)
        with reading(f"{what}: byte {offset}"):
            raise
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def is_resident(fd: int, offset: int) -> bool | None:
    """Whether the page at byte `offset` is in the page cache, by mincore, which reads nothing; False past the end.

    None without mincore, and where it would claim everything is: for a file that is not ours and that we may not write.
    """
    stat, page = os.fstat(fd), offset - offset % mmap.PAGESIZE
    if offset >= stat.st_size:
        return False
    if not (stat.st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK)):
        return None
    try:
        return mincore(fd, page, min(mmap.PAGESIZE, stat.st_size - page)) == [True]
    except (OSError, ValueError, AttributeError):  # for example a file that cannot be mapped, or was cut meanwhile
        return None


def mincore(fd: int, offset: int, nbytes: int) -> list[bool]:
    """Whether each page of a range is in the page cache, without reading any. `offset` is a multiple of the page size.

    Raises OSError if the system refuses, ValueError if the file ends before the range, AttributeError without mincore.
    """
    call = ctypes.CDLL(None, use_errno=True).mincore
    present = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
    with mmap.mmap(fd, nbytes, offset=offset, access=mmap.ACCESS_COPY) as view:
        first = ctypes.c_char.from_buffer(view)
        failed = call(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(nbytes), present)
        del first  # the mapping cannot be closed while something refers to it
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return [bool(page & 1) for page in present]
