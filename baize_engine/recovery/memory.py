"""How many worker threads, and pieces of which size, keep a recovery within a number of MiB."""

from __future__ import annotations

from baize_engine.errors import RequestError

MEMORY_MIB = 256  # default limit of a run
REST_MIB = 64  # of it for the interpreter and the indexes: 28 MiB were measured on a tiny model
WORKERS = 6  # with two cores and one disk, 4 kept the disk busy for 86 % of a run, 6 for 90 % (a plain copy: 95 %)
PIECE = 1 << 21  # elements: 8 MiB a buffer in float32, and a multiple of diff_add's chunk of 65536
BUFFERS = 4  # of one piece that a worker may hold, the base's mean row included
# workers, and the chunks that a piece must have; with smaller pieces, fewer workers are faster
FEWER = ((WORKERS, 8), (4, 8), (2, 4), (1, 1))


def check_memory(memory_mib: int) -> None:
    """RequestError unless `memory_mib` is an integer, and enough for one worker with the smallest piece."""
    from baize_engine import _C

    least = REST_MIB + (BUFFERS * _C.CHUNK * 4 >> 20)
    if isinstance(memory_mib, bool) or not isinstance(memory_mib, int) or memory_mib < least:
        raise RequestError(f"memory_mib is {memory_mib!r}, wanted a number of MiB of at least {least}")


def fit(memory_mib: int) -> tuple[int, int]:
    """(workers, elements of a piece) that keep a run on the CPU within `memory_mib` MiB, whatever the model's size.

    RequestError as `check_memory`.
    """
    from baize_engine import _C

    check_memory(memory_mib)
    room = memory_mib - REST_MIB << 20
    workers, piece = 1, _C.CHUNK
    for workers, chunks in FEWER:
        piece = min(PIECE, room // (workers * BUFFERS * 4) // _C.CHUNK * _C.CHUNK)
        if piece >= chunks * _C.CHUNK:
            break
    return workers, piece
