"""Reads a tensor by element ranges, however its files store it. The only place that reads the bytes of an entry.

float64 is read as float32, each element rounded once to nearest even; values too large for float32 become infinite, as in C.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import Entry, TensorEntry
from baize_engine.checkpoint.file_io import InputFile

NARROWED = 1 << 15  # float64 elements that are read and rounded at a time: 256 KiB, which fit into caches


class FileRange(NamedTuple):
    """Elements of `dtype` that lie in one piece of an open file, from byte `offset` on. `name`: what errors call them."""

    descriptor: int
    offset: int
    dtype: str
    name: str


class TensorReader:
    """Reads one tensor; a context manager over its open files. For one thread at a time.

    Data that was not in the page cache before is not left there. With `direct`, a tensor in one piece is then read past the
    page cache (`InputFile`). `cached`: the data was in the page cache, judged by two pages of each file.
    """

    def __init__(self, entry: Entry, direct: bool = False) -> None:
        self.entry = entry
        self.size = ITEMSIZE[entry.dtype]
        self._narrowed = any(part.narrowed for part in entry.parts)
        in_one_piece = isinstance(entry, TensorEntry) and not self._narrowed
        self._direct = direct and in_one_piece and entry.parts[0].offset % self.size == 0
        self._skipped = self._wide = memoryview(b"")

    def __enter__(self) -> TensorReader:
        with ExitStack() as stack:
            self._files: list[InputFile] = []
            for part in self.entry.parts:
                what = f"{part.path}: {self.entry.name}"
                end = part.offset + part.stored_nbytes
                self._files.append(InputFile(part.path, part.offset, end, what, self._direct))
                stack.callback(self._files[-1].close)
            self.cached = all(file.cached for file in self._files)
            self._close = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def read(self, begin: int, end: int, buffer: memoryview) -> memoryview:
        """Read elements [begin, end) and return their bytes, as a view of `buffer`.

        buffer: long enough for the bytes; with `direct`, as for `InputFile.read`. Raises CheckpointError if a file ends early.
        """
        size = self.size
        view = buffer[: (end - begin) * size]
        if begin < end:
            if self._direct:
                return self._files[0].read(self.entry.parts[0].offset + begin * size, len(view), buffer)
            for run in self.entry.runs(begin, end):
                file, part = self._files[run.part], self.entry.parts[run.part]
                at = part.offset + run.first * ITEMSIZE[part.stored_dtype]
                targets = [
                    self._skip(count * size) if place is None else view[place * size : (place + count) * size]
                    for place, count in run.places
                ]
                if part.narrowed:
                    self._read_narrowed(file, targets, at)
                else:
                    file.read_scattered(targets, at)
        return view

    def file_range(self, begin: int) -> FileRange | None:
        """Where elements from `begin` on lie, if the tensor is one cached piece of a file and needs no conversion."""
        if not self.cached or not isinstance(self.entry, TensorEntry) or self._narrowed:
            return None
        offset = self.entry.offset + begin * self.size
        name = f"{self.entry.path}: {self.entry.name}: byte {offset} or one after it"
        return FileRange(self._files[0].fileno(), offset, self.entry.dtype, name)

    def prefetch(self, begin: int, end: int) -> None:
        """Ask the system to start reading elements [begin, end), up to the end of the tensor."""
        end = min(end, self.entry.numel)
        if begin < end:
            for run in self.entry.runs(begin, end):
                count = sum(count for _, count in run.places)
                part = self.entry.parts[run.part]
                size = ITEMSIZE[part.stored_dtype]
                self._files[run.part].prefetch(part.offset + run.first * size, count * size)

    def _read_narrowed(self, file: InputFile, targets: list[memoryview], offset: int) -> None:
        """Fill `targets`, of float32, one after another with the float64 elements from byte `offset` on."""
        import numpy as np  # imported late: it is seldom needed and takes 20 MB

        left = sum(map(len, targets)) // 4
        if not self._wide:
            self._wide = memoryview(bytearray(NARROWED * 8))
        ready = memoryview(b"")
        for target in targets:
            while target:
                if not ready:
                    count = min(left, NARROWED)
                    file.read_scattered([self._wide[: count * 8]], offset)
                    with np.errstate(all="ignore"):
                        ready = np.frombuffer(self._wide, "<f8", count).astype("<f4").data.cast("B")
                    offset, left = offset + count * 8, left - count
                count = min(len(ready), len(target))
                target[:count] = ready[:count]
                target, ready = target[count:], ready[count:]

    def _skip(self, nbytes: int) -> memoryview:
        """Memory for bytes that are read and not used."""
        if len(self._skipped) < nbytes:
            self._skipped = memoryview(bytearray(nbytes))
        return self._skipped[:nbytes]
