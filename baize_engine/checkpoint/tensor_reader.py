"""Reads a tensor by element ranges, however it lies in its files. The one place that turns entries into bytes read."""

from __future__ import annotations

from contextlib import ExitStack

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.joined import Entry

Place = tuple[int, int]  # a descriptor, and the byte of its file


class TensorReader:
    """A context manager over a tensor's open files. For one thread at a time.

    What was not in the page cache before is not left there, and with `direct` does not go through it where it lies in one
    piece (`InputFile`). `cached`: it was there, judged by two pages of each file.
    """

    def __init__(self, entry: Entry, direct: bool = False) -> None:
        self.entry = entry
        self.size = ITEMSIZE[entry.dtype]
        self._direct = direct and isinstance(entry, TensorEntry) and entry.offset % self.size == 0
        self._unwanted = memoryview(b"")

    def __enter__(self) -> TensorReader:
        with ExitStack() as stack:
            self._files: list[InputFile] = []
            for part in self.entry.parts:
                what = f"{part.path}: {self.entry.name}"
                self._files.append(InputFile(part.path, part.offset, part.offset + part.nbytes, what, self._direct))
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
                file = self._files[run.part]
                at = self.entry.parts[run.part].offset + run.first * size
                targets = [
                    self._waste(count * size) if place is None else view[place * size : (place + count) * size]
                    for place, count in run.places
                ]
                file.read_scattered(targets, at)
        return view

    def place(self) -> Place | None:
        """Where it lies, if that is one piece of a file, and cached."""
        if self.cached and isinstance(self.entry, TensorEntry):
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
                self._files[run.part].prefetch(part.offset + run.first * self.size, count * self.size)

    def _waste(self, nbytes: int) -> memoryview:
        if len(self._unwanted) < nbytes:
            self._unwanted = memoryview(bytearray(nbytes))
        return self._unwanted[:nbytes]
