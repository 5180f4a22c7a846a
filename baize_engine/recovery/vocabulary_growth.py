"""The base's side of jobs on one tensor, continued where another side has elements for which the base has none."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable

from baize_engine.backend.adders import Operand
from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.plan import Fill, Job

CONSTANTS = 1 << 14  # elements of a constant copied at a time
BLOCK = 1 << 21  # elements read at a time where only the mean is wanted

MeanRow = Callable[[Entry], "array[float]"]  # `mean_row`, or a cached form of it where several plans share a base


class BaseRows:
    """The base's side of the jobs of one of its tensors, each continued by the job's `fill` where the job's base ends.

    The jobs' bases begin alike: one may be without the last rows of another (`drop_rows`). `reader` reads the longest,
    `whole_base`, which is that of every job that grows by the mean row.

    The mean of each column is summed in float64, in row order, while the rows stream past, and rounded once to float32,
    so that it is the same on every machine; torch's float32 mean depends on its order of summation. `subtract`: the base is
    what is subtracted.
    """

    def __init__(self, jobs: list[Job], reader: TensorReader, buffer: memoryview, subtract: bool) -> None:
        self.base, self.reader, self.buffer, self.subtract = whole_base(jobs), reader, buffer, subtract
        self.grows = any(job.grows for job in jobs)
        averaged = any(job.grows and job.fill == "mean" for job in jobs)
        self.columns = ColumnMean(jobs[0].row, self.base.dtype) if averaged else None
        self.view = buffer[:0]
        self.grown: memoryview | None = None

    def read(self, begin: int, end: int) -> int:
        """Reads elements [begin, end), as far as the base goes; returns the bytes read."""
        self.view = self.reader.read(begin, max(begin, min(end, self.base.numel)), self.buffer)
        if self.columns is not None:
            self.columns.add(self.view)
        return len(self.view)

    def operand(self, begin: int, end: int, make_buffer: Callable[[int], memoryview], job: Job) -> Operand:
        """Elements [begin, end) of the base as `job` has it, of what was read from `begin` on.

        They are the base's own bytes, or float32 once the job's `fill` takes part.
        """
        size, real = self.reader.size, job.base.numel
        if end <= real:
            return Operand(self.view[: (end - begin) * size], self.base.dtype)
        from baize_engine import _C

        self.grown = self.grown or make_buffer(len(self.buffer))
        out = self.grown[: (end - begin) * 4]
        own = max(0, real - begin)
        _C.widen(self.view[: own * size], self.base.dtype, out[: own * 4])
        period = self._period(job.fill)
        length = len(period) // 4
        position = begin + own
        while position < end:
            first = (position - real) % length
            count = min(length - first, end - position)
            out[(position - begin) * 4 : (position - begin + count) * 4] = period[first * 4 : (first + count) * 4]
            position += count
        return Operand(out, "float32")

    def _period(self, fill: Fill) -> memoryview:
        """What continues the base, repeated as often as needed, as float32 bytes."""
        if fill != "mean":
            # x + -0.0 and x - 0.0 are x for every x, -0.0 included
            neutral = 0.0 if self.subtract else -0.0
            return memoryview(struct.pack("<f", 0.0 if fill == "zero" else neutral) * CONSTANTS)
        if self.columns is None:
            raise ValueError(f"{self.base.name} grows by its mean row, which was not summed")
        return self.columns.mean_row(self.base.shape[0])


def whole_base(jobs: list[Job]) -> Entry:
    """The longest of the bases of jobs on one tensor of the base."""
    return max((job.base for job in jobs), key=lambda base: base.numel)


class ColumnMean:
    """Column sums in float64 of rows that arrive in pieces cut anywhere."""

    def __init__(self, row: int, dtype: str) -> None:
        self.row, self.dtype = row, dtype
        self.row_bytes = row * ITEMSIZE[dtype]
        self.sums = memoryview(bytearray(row * 8)).cast("d")
        self.tail = bytearray()  # the beginning of a row that ends in the next piece

    def add(self, view: memoryview) -> None:
        from baize_engine import _C

        if self.tail:
            need = min(self.row_bytes - len(self.tail), len(view))
            self.tail += view[:need]
            view = view[need:]
            if len(self.tail) == self.row_bytes:
                _C.add_rows(self.sums, self.tail, self.dtype)
                self.tail = bytearray()
        whole = len(view) - len(view) % self.row_bytes
        if whole:
            _C.add_rows(self.sums, view[:whole], self.dtype)
        self.tail += view[whole:]

    def mean_row(self, rows: int) -> memoryview:
        """The mean row as float32 bytes."""
        mean = memoryview(bytearray(self.row * 4)).cast("f")
        for column, value in enumerate(self.sums):
            mean[column] = value / rows  # C's conversion: to nearest even
        return mean.cast("B")


def mean_row(entry: Entry) -> array[float]:
    """The mean of a matrix's rows, just as a recovery adds it to new rows. Reads the whole matrix."""
    columns = ColumnMean(entry.shape[1], entry.dtype)
    step = max(1, BLOCK // entry.grain) * entry.grain
    buffer = aligned_buffer(min(step, entry.numel) * ITEMSIZE[entry.dtype] + SLACK)
    with TensorReader(entry, direct=True) as reader:
        for begin in range(0, entry.numel, step):
            columns.add(reader.read(begin, min(begin + step, entry.numel), buffer))
    mean = array("f")
    mean.frombytes(columns.mean_row(entry.shape[0]))
    return mean
