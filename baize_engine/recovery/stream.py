"""Runs the jobs of a plan through bounded buffers: read ranges, combine, hash, write at offset.

Each worker thread carries one tensor at a time from end to end, piece by piece, so that its hash and sum are taken in
order without a queue; several workers keep disk and processor busy at once. Memory is `workers` x three buffers of one
piece, whatever the model's size. Knows nothing of what the sink does with the bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from math import isfinite, lcm
from typing import Protocol

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.manifest import TensorRecord
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.adders import Adder
from baize_engine.recovery.plan import Job, Plan

WORKERS = 4  # two processor cores and one disk were kept busy by 3; 4 costs 24 MiB more at most
PIECE = 1 << 21  # elements: 8 MiB a buffer in float32, and a multiple of diff_add's chunk of 65536


class Sink(Protocol):
    """Takes the result: `CheckpointWriter` writes it to files."""

    def write(self, name: str, offset: int, view: memoryview) -> None: ...


class Hash(Protocol):
    """The part of a hashlib object that is used here, so that a measurement can leave hashing out."""

    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def stream(
    plan: Plan,
    sink: Sink,
    make_adder: Callable[[], Adder],
    *,
    subtract: bool = False,
    workers: int = WORKERS,
    piece: int = PIECE,
    progress: Callable[[int], None] = lambda nbytes: None,
    make_hash: Callable[[], Hash] = hashlib.sha256,
    done: Mapping[str, TensorRecord] | None = None,
    finished: Callable[[str, TensorRecord], None] = lambda name, record: None,
) -> dict[str, TensorRecord]:
    """Carries out every job of `plan` that is not `done` already and returns the record of each tensor by name.

    `progress` is called with the bytes read and written since its last call, `finished` with each tensor that is whole,
    both from any worker. The first exception of a worker, or Ctrl-C, stops the others at their next piece and is raised
    here.
    """
    records = dict(done or {})
    jobs = iter([job for job in plan.jobs if job.name not in records])
    lock = threading.Lock()
    stop = threading.Event()

    def take() -> Job | None:
        with lock:
            return next(jobs, None)

    def work() -> None:
        worker = _Worker(sink, make_adder(), subtract, piece, progress, make_hash, stop)
        while not stop.is_set() and (job := take()) is not None:
            record = worker.run(job)
            if record is not None:
                records[job.name] = record
                finished(job.name, record)

    count = max(1, min(workers, len(plan.jobs)))
    with ThreadPoolExecutor(count, thread_name_prefix="baize") as pool:
        try:
            futures = [pool.submit(work) for _ in range(count)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
    return {job.name: records[job.name] for job in plan.jobs}


class _Worker:
    """The buffers of one thread and the loop over one tensor's pieces."""

    def __init__(
        self,
        sink: Sink,
        adder: Adder,
        subtract: bool,
        piece: int,
        progress: Callable[[int], None],
        make_hash: Callable[[], Hash],
        stop: threading.Event,
    ) -> None:
        self.sink, self.adder, self.subtract, self.piece = sink, adder, subtract, piece
        self.progress, self.make_hash, self.stop = progress, make_hash, stop
        self.base_buffer = adder.buffer(
            piece * 4
        )  # room for float32; pages that narrower types leave alone cost nothing
        self.other_buffer = adder.buffer(piece * 4)
        self.out_buffer = adder.buffer(piece * 4)

    def run(self, job: Job) -> TensorRecord | None:
        """The record of the finished tensor, or None when another worker's failure stopped this one."""
        digest = self.make_hash()
        total, overflowed, nonfinite = 0.0, 0, 0
        size = ITEMSIZE[job.dtype]
        with TensorReader(job.base) as base, TensorReader(job.other) as other:
            rows = _BaseRows(job, base, self.base_buffer)
            piece = piece_of(job, self.piece)
            for begin, end in _pieces(job.other.numel, piece):
                if self.stop.is_set():
                    return None
                other.prefetch(end, end + piece)
                base.prefetch(end, end + piece)
                base_view, base_dtype = rows.read(begin, end)
                other_view = other.read(begin, end, self.other_buffer)
                out = self.out_buffer[: (end - begin) * size]
                sums, over, odd = self.adder.add(
                    base_view, base_dtype, other_view, job.other.dtype, out, job.dtype, subtract=self.subtract
                )
                for value in sums:
                    total += value
                overflowed += over
                nonfinite += odd
                digest.update(out)
                self.sink.write(job.name, begin * size, out)
                self.progress(len(base_view) + len(other_view) + len(out))
        return TensorRecord(
            job.dtype, job.other.shape, digest.hexdigest(), total if isfinite(total) else None, overflowed, nonfinite
        )


def piece_of(job: Job, most: int) -> int:
    """Elements of a piece: at most `most`, whole chunks of diff_add, and whole heads where the base's rows are reordered."""
    from baize_engine import _C

    step = lcm(_C.CHUNK, job.base.grain)
    return most // step * step or most


def _pieces(total: int, piece: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, piece):
        yield begin, min(begin + piece, total)


class _BaseRows:
    """The base's side of a job, grown by its mean row where the other side has more rows.

    The mean of each column is summed in float64, in row order, while the rows stream past, and rounded once to float32,
    so that it is the same on every machine; torch's float32 mean depends on its order of summation.
    """

    def __init__(self, job: Job, source: TensorReader, buffer: memoryview) -> None:
        self.job, self.source, self.buffer = job, source, buffer
        self.columns = _ColumnMean(job.row, job.base.dtype)  # fed only where there are extra rows

    def read(self, begin: int, end: int) -> tuple[memoryview, str]:
        """Elements [begin, end) as (bytes, dtype): the base's own bytes, or float32 once the mean row takes part."""
        real = self.job.base.numel
        if end <= real:
            view = self.source.read(begin, end, self.buffer)
            if self.job.extra_rows:
                self.columns.add(view)
            return view, self.job.base.dtype
        return self._read_grown(begin, end, real), "float32"

    def _read_grown(self, begin: int, end: int, real: int) -> memoryview:
        from baize_engine import _C

        out = self.buffer[: (end - begin) * 4]
        if begin < real:
            size = self.source.size
            own = self.source.read(begin, real, memoryview(bytearray((real - begin) * size)))
            self.columns.add(own)
            _C.widen(own, self.job.base.dtype, out[: (real - begin) * 4])
        row = self.columns.mean_row(self.job.base.shape[0])
        position = max(begin, real)
        while position < end:
            column = (position - real) % self.job.row
            count = min(self.job.row - column, end - position)
            out[(position - begin) * 4 : (position - begin + count) * 4] = row[column * 4 : (column + count) * 4]
            position += count
        return out


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
