"""The base's side of a group of jobs, grown by its mean row where another side has more vocabulary rows."""

from __future__ import annotations

from collections.abc import Callable

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.tensor_reader import Place, TensorReader
from baize_engine.recovery.plan import Job


class BaseRows:
    """The base's side of a group, grown by its mean row where another side has more rows.

    The mean of each column is summed in float64, in row order, while the rows stream past, and rounded once to float32,
    so that it is the same on every machine; torch's float32 mean depends on its order of summation.
    """

    def __init__(self, job: Job, reader: TensorReader, buffer: memoryview, grows: bool) -> None:
        self.base, self.row, self.reader, self.buffer = job.base, job.row, reader, buffer
        self.columns = _ColumnMean(job.row, job.base.dtype) if grows else None
        self.view = buffer[:0]
        self.grown: memoryview | None = None

    def read(self, begin: int, end: int) -> int:
        """Reads elements [begin, end), as far as the base goes; returns the bytes read."""
        self.view = self.reader.read(begin, max(begin, min(end, self.base.numel)), self.buffer)
        if self.columns is not None:
            self.columns.add(self.view)
        return len(self.view)

    def place(self) -> Place | None:
        """Where all of it lies, if that is one piece of a file, cached, and nothing is to be summed or added to it."""
        return self.reader.place() if self.columns is None else None

    def side(self, begin: int, end: int, make_buffer: Callable[[int], memoryview]) -> tuple[memoryview, str]:
        """Elements [begin, end) of what was read from `begin` on, as (bytes, dtype).

        They are the base's own bytes, or float32 once the mean row takes part.
        """
        size, real = self.reader.size, self.base.numel
        if end <= real:
            return self.view[: (end - begin) * size], self.base.dtype
        from baize_engine import _C

        if self.columns is None:
            raise ValueError(
                f"elements {begin} to {end} of {self.base.name}, which has {real} and was not said to grow"
            )
        self.grown = self.grown or make_buffer(len(self.buffer))
        out = self.grown[: (end - begin) * 4]
        own = max(0, real - begin)
        _C.widen(self.view[: own * size], self.base.dtype, out[: own * 4])
        row = self.columns.mean_row(self.base.shape[0])
        position = begin + own
        while position < end:
            column = (position - real) % self.row
            count = min(self.row - column, end - position)
            out[(position - begin) * 4 : (position - begin + count) * 4] = row[column * 4 : (column + count) * 4]
            position += count
        return out, "float32"


class _ColumnMean:
    """Column sums in float64 of rows that arrive in pieces cut anywhere."""

    def __init__(self, row: int, dtype: str) -> None:
        self.row, self.dtype = row, dtype
        self.row_bytes = row * ITEMSIZE[dtype]
        self.sums = memoryview(bytearray(row * 8)).cast("d")
        self.tail = bytearray()  # the beginning of a row whose end is in the next piece

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
