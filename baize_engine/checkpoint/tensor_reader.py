"""Reads a tensor by element ranges, however it lies in its files. The one place that turns entries into bytes read.

What files have as float64 is read as float32, each element rounded once to nearest even; what float32 cannot hold becomes
infinite, as in C.
"""

from __future__ import annotations

from contextlib import ExitStack

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.joined import Entry

NARROWED = 1 << 15  # elements of float64 that are read and rounded at a time: 256 KiB of them, which caches keep

Place = tuple[int, int]  # a descriptor, and the byte of its file


class TensorReader:
    """A context manager over a tensor's open files. For one thread at a time.

    What was not in the page cache before is not left there, and with `direct` does not go through it where it lies in one
    piece (`InputFile`). `cached`: it was there, judged by two pages of each file.
    """

    def __init__(self, entry: Entry, direct: bool = False) -> None:
        self.entry = entry
        self.size = ITEMSIZE[entry.dtype]
        self._narrowed = any(part.narrowed for part in entry.parts)
        whole = isinstance(entry, TensorEntry) and not self._narrowed
        self._direct = direct and whole and entry.parts[0].offset % self.size == 0
        self._unwanted = self._wide = memoryview(b"")

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
        """Elements [begin, end) as bytes, somewhere in `buffer`, which with `direct` is as `InputFile.read` wants it.

        CheckpointError where a file ends too early.
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
                    self._waste(count * size) if place is None else view[place * size : (place + count) * size]
                    for place, count in run.places
                ]
                if part.narrowed:
                    self._read_narrowed(file, targets, at)
                else:
                    file.read_scattered(targets, at)
        return view

    def place(self) -> Place | None:
        """Where it lies as it is to be had, if that is one piece of a file, and cached."""
        if self.cached and isinstance(self.entry, TensorEntry) and not self._narrowed:
            return self._files[0].fileno(), self.entry.offset
        return None

    @property
    def what(self) -> str:
        """What errors call it: its file, or the first of them, and its name."""
        return f"{self.entry.path}: {self.entry.name}"

    def prefetch(self, begin: int, end: int) -> None:
        """Asks the system to start reading elements [begin, end), as far as the tensor goes."""
        end = min(end, self.entry.numel)
        if begin < end:
            for run in self.entry.runs(begin, end):
                count = sum(count for _, count in run.places)
                part = self.entry.parts[run.part]
                size = ITEMSIZE[part.stored_dtype]
                self._files[run.part].prefetch(part.offset + run.first * size, count * size)

    def _read_narrowed(self, file: InputFile, targets: list[memoryview], offset: int) -> None:
        """Fills `targets`, of float32, one after another from the float64 at byte `offset` on."""
        import numpy as np  # here, as few need it and it takes 20 MB

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

    def _waste(self, nbytes: int) -> memoryview:
        if len(self._unwanted) < nbytes:
            self._unwanted = memoryview(bytearray(nbytes))
        return self._unwanted[:nbytes]
