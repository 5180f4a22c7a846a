"""Runs the jobs of a plan through bounded buffers: read ranges, combine, hash, write at offset.

Each worker thread carries one tensor of the base at a time from end to end, piece by piece, through all outputs that want
it, so that hashes and sums are taken in order without a queue. Several workers keep the disk busy; reading from memory,
adding and hashing go through `Processors`. Memory is `workers` x three buffers of one piece, whatever the model's size and the
number of outputs; a fourth where the base's mean row takes part. Knows nothing of what a sink does with the bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite, lcm
from typing import Any, Protocol

from baize_engine.backend.adders import Adder, Stats
from baize_engine.checkpoint.buffers import HUGE
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.manifest import TensorRecord
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.tensor_reader import Place, TensorReader
from baize_engine.errors import RequestError
from baize_engine.interrupts import Check, in_threads
from baize_engine.recovery.compute_pool import Processors
from baize_engine.recovery.plan import Job, Plan
from baize_engine.recovery.vocabulary_growth import BaseRows, whole_base

WORKERS = 6  # of two cores and one disk 4 kept the disk busy for 86 % of a run, 6 for 90 (a plain copy: 95)
PIECE = 1 << 21  # elements: 8 MiB a buffer in float32, and a multiple of diff_add's chunk of 65536
BUFFERS = 4  # of one piece that a worker may hold, the base's mean row included
MEMORY_MIB = 256  # what a run may take
REST_MIB = 64  # of it for the interpreter and the indexes: 28 MiB were measured on a tiny model
FEWER = ((WORKERS, 8), (4, 8), (2, 4), (1, 1))  # workers, and the chunks of a piece below which fewer workers do better


class Sink(Protocol):
    """Takes the result: `CheckpointWriter` writes it to files."""

    def write(self, name: str, offset: int, view: memoryview) -> None: ...


class Hash(Protocol):
    """The part of a hashlib object that is used here, so that a measurement can leave hashing out."""

    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class NoHash:
    """For results that nobody will compare."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str:
        return ""


@dataclass(frozen=True)
class Output:
    """One result of a pass over the base: its plan and where its bytes go.

    `done`: tensors that are there already. `finished` is called with each tensor that is whole, from any worker.
    """

    plan: Plan
    sink: Sink
    done: Mapping[str, TensorRecord] = field(default_factory=dict)
    finished: Callable[[str, TensorRecord], None] = lambda name, record: None


Places = tuple[Place, Place]  # where the base's tensor and the other side's lie
Group = list[tuple[int, Job]]  # the jobs of one base tensor, each with the number of its output


def groups_of(outputs: Sequence[Output], all_jobs: bool = False) -> list[Group]:
    """What is left to do, base tensor by base tensor; `all_jobs`: what is done as well.

    The largest first: at the end no worker goes on for long when the others have nothing left.
    """
    groups: dict[str, Group] = {}
    for number, output in enumerate(outputs):
        for job in output.plan.jobs:
            group = groups.setdefault(job.name, [])
            if all_jobs or job.name not in output.done:
                group.append((number, job))
    return sorted(filter(None, groups.values()), key=lambda group: -group[0][1].base.nbytes)


def traffic(groups: list[Group]) -> int:
    """Bytes that a pass over `groups` reads and writes: the base's once, whatever the number of outputs."""
    return sum(group[0][1].base.nbytes + sum(job.traffic - job.base.nbytes for _, job in group) for group in groups)


def stream(
    plan: Plan,
    sink: Sink,
    make_adder: Callable[[], Adder],
    *,
    done: Mapping[str, TensorRecord] | None = None,
    finished: Callable[[str, TensorRecord], None] = lambda name, record: None,
    **settings: Any,
) -> dict[str, TensorRecord]:
    """`stream_all` for one output: the record of each tensor by name."""
    (records,) = stream_all([Output(plan, sink, done or {}, finished)], make_adder, **settings)
    return records


def stream_all(
    outputs: Sequence[Output],
    make_adder: Callable[[], Adder],
    *,
    subtract: bool = False,
    workers: int = WORKERS,
    piece: int = PIECE,
    progress: Callable[[int], None] = lambda nbytes: None,
    make_hash: Callable[[], Hash] = hashlib.sha256,
) -> list[dict[str, TensorRecord]]:
    """Carries out the jobs of all outputs in one pass over the base, and returns for each the records by tensor name.

    The plans share one base. `progress` is called with the bytes read and written since its last call, from any worker. The
    first exception of a worker, or Ctrl-C, stops the others at their next piece and is raised here when they have stopped.
    """
    from baize_engine import _C

    records = [dict(output.done) for output in outputs]
    pending = groups_of(outputs)
    groups = iter(pending)
    lock = threading.Lock()

    def take() -> Group | None:
        with lock:
            return next(groups, None)

    def work(_: int, check: Check) -> None:
        worker = _Worker(outputs, make_adder(), subtract, piece, progress, make_hash, check, compute)
        while (group := take()) is not None:
            for number, name, record in worker.run(group):
                records[number][name] = record
                outputs[number].finished(name, record)

    count = max(1, min(workers, len(pending)))
    compute = Processors(count)
    largest = max((max(job.base.numel, job.other.numel) for group in pending for _, job in group), default=0)
    piece = min(piece, max(1, -(-largest // _C.CHUNK)) * _C.CHUNK)  # no memory that nothing will fill
    in_threads(work, range(count), count, beside=compute)
    return [
        {job.name: found[job.name] for job in output.plan.jobs} for output, found in zip(outputs, records, strict=True)
    ]


class _Worker:
    """The buffers of one worker, for one thread at a time, and the loop over one base tensor's pieces."""

    def __init__(
        self,
        outputs: Sequence[Output],
        adder: Adder,
        subtract: bool,
        piece: int,
        progress: Callable[[int], None],
        make_hash: Callable[[], Hash],
        check: Check,
        compute: Processors,
    ) -> None:
        self.outputs, self.adder, self.subtract, self.piece = outputs, adder, subtract, piece
        self.progress, self.make_hash, self.check, self.compute = progress, make_hash, check, compute
        # room for float32; pages that narrower types leave alone cost nothing
        self.base_buffer, self.other_buffer, self.out_buffer = (adder.buffer(piece * 4 + adder.slack) for _ in range(3))
        self.direct = adder.slack > 0 and piece * 4 >= HUGE

    def run(self, group: Group) -> list[tuple[int, str, TensorRecord]]:
        """The records of the finished tensors, each with the number of its output and its name."""
        jobs = [job for _, job in group]
        with ExitStack() as stack:
            base = stack.enter_context(TensorReader(whole_base(jobs), self.direct))
            lanes = [
                _Lane(number, job, stack.enter_context(TensorReader(job.other, self.direct)), self.make_hash())
                for number, job in group
            ]
            rows = BaseRows(jobs, base, self.base_buffer, self.subtract)
            base_place, other_place = rows.place(), lanes[0].other.place()
            places = (base_place, other_place) if base_place and other_place and len(lanes) == 1 else None
            piece = piece_of(jobs[0], self.piece)
            for begin, end in _pieces(max(lane.job.other.numel for lane in lanes), piece):
                self.check()
                base.prefetch(end, end + piece)
                if places is None:
                    self.progress(self._read(base, rows.read, begin, end))
                for lane in lanes:
                    lane.other.prefetch(end, end + piece)
                    self._combine(lane, rows, places, begin, min(end, lane.job.other.numel))
        return [(lane.number, lane.job.name, lane.record()) for lane in lanes]

    def _read(self, reader: TensorReader, read: Callable[..., Any], *arguments: Any) -> Any:
        """What the page cache has takes a processor's time, other reads wait for the disk."""
        return self.compute(read, *arguments) if reader.cached else read(*arguments)

    def _combine(self, lane: _Lane, rows: BaseRows, places: Places | None, begin: int, end: int) -> None:
        """One piece of one output."""
        if begin >= end:
            return
        job = lane.job
        out = self.out_buffer[: (end - begin) * ITEMSIZE[job.dtype]]
        if places is not None:
            self.progress(self.compute(self._add_files, lane, rows, places, begin, end, out))
        else:
            other = self._read(lane.other, lane.other.read, begin, end, self.other_buffer)
            self.compute(self._add, lane, rows, other, begin, end, out)
        self.outputs[lane.number].sink.write(job.name, begin * ITEMSIZE[job.dtype], out)
        self.progress((end - begin) * ITEMSIZE[job.other.dtype] + len(out))

    def _add(self, lane: _Lane, rows: BaseRows, other: memoryview, begin: int, end: int, out: memoryview) -> None:
        """Adds and hashes."""
        job = lane.job
        base, base_dtype = rows.side(begin, end, self.adder.buffer, job)
        stats = self.adder.add(base, base_dtype, other, job.other.dtype, out, job.dtype, subtract=self.subtract)
        lane.take(out, stats)

    def _add_files(self, lane: _Lane, rows: BaseRows, places: Places, begin: int, end: int, out: memoryview) -> int:
        """Reads, adds and hashes; returns the bytes read of the base."""
        job = lane.job
        base, other = (
            (descriptor, offset + begin * ITEMSIZE[entry.dtype])
            for (descriptor, offset), entry in zip(places, (job.base, job.other), strict=True)
        )
        try:
            stats = self.adder.add_files(
                base, job.base.dtype, other, job.other.dtype, out, job.dtype, subtract=self.subtract
            )
        except OSError as error:
            reader, (_, byte) = (lane.other, other) if error.filename == "diff" else (rows.reader, base)
            with reading(f"{reader.what}: byte {byte} or one after it"):
                raise
        if stats is None:
            read = rows.read(begin, end)
            self._add(lane, rows, lane.other.read(begin, end, self.other_buffer), begin, end, out)
            return read
        lane.take(out, stats)
        return (end - begin) * ITEMSIZE[job.base.dtype]


@dataclass
class _Lane:
    """One output's side of a group: its reader, its hash, and what was counted so far."""

    number: int
    job: Job
    other: TensorReader
    digest: Hash
    total: float = 0.0
    overflowed: int = 0
    nonfinite: int = 0

    def take(self, out: memoryview, stats: Stats) -> None:
        """The next piece of the result."""
        self.digest.update(out)
        sums, overflowed, nonfinite = stats
        for value in sums:
            self.total += value
        self.overflowed += overflowed
        self.nonfinite += nonfinite

    def record(self) -> TensorRecord:
        total = self.total if isfinite(self.total) else None
        shape = self.job.other.shape
        return TensorRecord(self.job.dtype, shape, self.digest.hexdigest(), total, self.overflowed, self.nonfinite)


def fit(memory_mib: int) -> tuple[int, int]:
    """(workers, elements of a piece) that keep a run on the CPU within `memory_mib` MiB, whatever the model's size.

    RequestError where it is too little for one worker with the smallest piece.
    """
    from baize_engine import _C

    least = REST_MIB + (BUFFERS * _C.CHUNK * 4 >> 20)
    if isinstance(memory_mib, bool) or not isinstance(memory_mib, int) or memory_mib < least:
        raise RequestError(f"memory_mib is {memory_mib!r}, wanted a number of MiB of at least {least}")
    room = memory_mib - REST_MIB << 20
    workers, piece = 1, _C.CHUNK
    for workers, chunks in FEWER:
        piece = min(PIECE, room // (workers * BUFFERS * 4) // _C.CHUNK * _C.CHUNK)
        if piece >= chunks * _C.CHUNK:
            break
    return workers, piece


def piece_of(job: Job, most: int) -> int:
    """Elements of a piece: at most `most`, whole chunks of diff_add, and whole heads where the base's rows are reordered."""
    from baize_engine import _C

    step = lcm(_C.CHUNK, job.base.grain)
    return most // step * step or most


def _pieces(total: int, piece: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, piece):
        yield begin, min(begin + piece, total)
