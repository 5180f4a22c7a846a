"""Reads a tensor by element ranges, however it lies in its files. The one place that turns entries into bytes read."""

from __future__ import annotations

import os
from contextlib import ExitStack

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.file_io import forget, is_cached, open_read, prefetch, read_scattered
from baize_engine.checkpoint.joined import Entry


class TensorReader:
    """A context manager over the descriptors of a tensor's files. Not shared between threads.

    What was not in the page cache before, judged by the page in a tensor's middle, is not left there: a model larger than the
    memory would push everything else out, and fresh pages are slower than those that were just given back (10 GB cold: 6.1 s in
    place of 8.4). Some of what the system reads ahead stays.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.size = ITEMSIZE[entry.dtype]
        self._unwanted = memoryview(b"")

    def __enter__(self) -> TensorReader:
        with ExitStack() as stack:
            self._files: list[int] = []
            self._passing: list[bool] = []  # of each part, whether its pages are given back
            for part in self.entry.parts:
                self._files.append(open_read(part.path))
                stack.callback(os.close, self._files[-1])
                # the middle: the ends may share pages with tensors that are being read
                middle = part.offset + part.nbytes // 2
                self._passing.append(not is_cached(self._files[-1], middle, self._what(part)))
            self._close = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def read(self, begin: int, end: int, buffer: memoryview) -> memoryview:
        """Elements [begin, end) as bytes at the beginning of `buffer`. CheckpointError where a file ends too early."""
        size = self.size
        view = buffer[: (end - begin) * size]
        if begin < end:
            for run in self.entry.runs(begin, end):
                part = self.entry.parts[run.part]
                targets = [
                    self._waste(count * size) if place is None else view[place * size : (place + count) * size]
                    for place, count in run.places
                ]
                at = part.offset + run.first * size
                read_scattered(self._files[run.part], targets, at, self._what(part))
                if self._passing[run.part]:
                    forget(self._files[run.part], at, sum(map(len, targets)))
        return view

    def prefetch(self, begin: int, end: int) -> None:
        """Asks the system to start reading elements [begin, end), as far as the tensor goes."""
        end = min(end, self.entry.numel)
        if begin < end:
            for run in self.entry.runs(begin, end):
                count = sum(count for _, count in run.places)
                part = self.entry.parts[run.part]
                prefetch(self._files[run.part], part.offset + run.first * self.size, count * self.size)

    def _what(self, part: TensorEntry) -> str:
        return f"{part.path}: {self.entry.name}"

    def _waste(self, nbytes: int) -> memoryview:
        if len(self._unwanted) < nbytes:
            self._unwanted = memoryview(bytearray(nbytes))
        return self._unwanted[:nbytes]
