"""The bytes of one file of a result, piece by piece: the payload's, unpacked if they are gzip data, XORed with the base's."""

from __future__ import annotations

import zlib
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.errors import CheckpointError
from baize_engine.progress import Advance, no_progress
from baize_engine.recovery.xor.job import XorJob

KEY_BLOCK = 10 << 20  # bytes in which encrypt.py walks through its key
PIECE = 2 << 20  # bytes at a time: divides a block of the key, and is a huge page
PACKED = 256 << 10  # bytes of gzip data at a time: what is not unpacked of them is copied each time
# what gzip data may unpack to: so many times the base's size (float16 to float32 is twice), and so many bytes more
MAX_GROWTH, MAX_EXTRA = 4, 64 << 20


class BaseFile:
    """The file of the same name: its bytes, and nothing after its end."""

    def __init__(self, path: Path, size: int) -> None:
        self.size, self.file = size, InputFile(path, 0, size, str(path), direct=True)

    def read(self, position: int, nbytes: int, buffer: memoryview) -> memoryview:
        """Up to `nbytes` bytes from byte `position` on, somewhere in `buffer`."""
        count = min(nbytes, self.size - position)
        return self.file.read(position, count, buffer) if count > 0 else buffer[:0]


class KeyFile(BaseFile):
    """One file repeated as by `encrypt.py`: in blocks of 10 MiB, the last of which is filled up by repeating itself."""

    _last: numpy.ndarray | None = None

    def read(self, position: int, nbytes: int, buffer: memoryview) -> memoryview:
        """The key for `nbytes` bytes of the content from byte `position` on; both ends lie within one block of 10 MiB."""
        block, within = divmod(position, KEY_BLOCK)
        whole, rest = divmod(self.size, KEY_BLOCK)  # whole blocks, and the bytes of the last
        block %= whole + (rest > 0)
        if block < whole:
            return self.file.read(block * KEY_BLOCK + within, nbytes, buffer)
        if self._last is None:
            found = self.file.read(whole * KEY_BLOCK, rest, aligned_buffer(rest + SLACK))
            self._last = numpy.resize(_numbers(found), KEY_BLOCK)
        return self._last[within : within + nbytes].data


def decoded(job: XorJob, piece: int = PIECE, progress: Advance = no_progress) -> Generator[memoryview, None, None]:
    """The result's bytes in pieces of `piece` bytes (the last may be shorter), which share one buffer.

    `progress` is called with the bytes read. CheckpointError where a file cannot be read, is not gzip data though it begins so,
    or unpacks to far more than the base has.
    """
    out, other = aligned_buffer(piece), aligned_buffer(piece + SLACK)
    with ExitStack() as stack:
        base: BaseFile | None = None
        if job.base is not None and job.payload_size > job.begin:
            base = (KeyFile if job.keyed else BaseFile)(job.base, job.base_size)
            stack.callback(base.file.close)
        views = stack.enter_context(closing((_unpacked if job.packed else _plain)(job, piece, progress)))
        position = 0
        for view in views:
            count = 0
            if base is not None:
                there = base.read(position, len(view), other)
                count = len(there)
                numpy.bitwise_xor(_numbers(view[:count]), _numbers(there), out=_numbers(out[:count]))
            out[count : len(view)] = view[count:]  # a shorter base counts as padded with zeros
            yield out[: len(view)]
            position += len(view)


def _numbers(view: memoryview) -> numpy.ndarray:
    return numpy.frombuffer(view, numpy.uint8)


def _plain(job: XorJob, piece: int, progress: Advance) -> Generator[memoryview, None, None]:
    if job.payload_size == job.begin:
        return
    buffer = aligned_buffer(piece + SLACK)
    with closing(InputFile(job.payload, job.begin, job.payload_size, str(job.payload), direct=True)) as file:
        for offset in range(job.begin, job.payload_size, piece):
            view = file.read(offset, min(piece, job.payload_size - offset), buffer)
            yield view
            progress(len(view))


def _unpacked(job: XorJob, piece: int, progress: Advance) -> Generator[memoryview, None, None]:
    """What the gzip data unpack to, in pieces of equal size, so that whole pages can be written past the page cache."""
    buffer = aligned_buffer(piece)
    filled = total = 0
    most = MAX_GROWTH * job.base_size + MAX_EXTRA
    for data in _members(job, piece, progress):
        total += len(data)
        if total > most:
            raise CheckpointError(
                f"{job.payload} unpacks to more than {most} bytes, but {job.base} has {job.base_size}: no payload for it does"
            )
        while data:
            taken = data[: piece - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            data = data[len(taken) :]
            if filled == piece:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _members(job: XorJob, piece: int, progress: Advance) -> Generator[memoryview, None, None]:
    """What each gzip member unpacks to, at most `piece` bytes at a time. Zeros may follow the last, as on tapes."""
    decoder = zlib.decompressobj(wbits=31)
    what = job.payload
    ended = False  # between members
    buffer = aligned_buffer(PACKED + SLACK)
    with closing(InputFile(what, 0, job.payload_size, str(what), direct=True)) as file:
        for offset in range(0, job.payload_size, PACKED):
            count = min(PACKED, job.payload_size - offset)
            data = bytes(file.read(offset, count, buffer))
            while data:
                if ended:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder, ended = zlib.decompressobj(wbits=31), False
                try:
                    yield memoryview(decoder.decompress(data, piece))
                except zlib.error as error:
                    at = offset + count - len(data)
                    raise CheckpointError(f"{what}: byte {at} or later: not gzip data ({error})") from None
                ended = decoder.eof
                data = decoder.unused_data if ended else decoder.unconsumed_tail
            progress(count)
    if not ended:
        rest = decoder.flush()  # less than a window is ever left
        if rest:
            yield memoryview(rest)
        if not decoder.eof:
            raise CheckpointError(f"{what}: the gzip data are incomplete (was the file truncated?)")
