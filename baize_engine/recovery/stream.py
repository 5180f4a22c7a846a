"""Runs the jobs of plans through bounded buffers: read ranges, combine, hash, write at offset.

Each worker thread carries one tensor of the base at a time from end to end, piece by piece, through all targets that want it,
so that hashes and sums are taken in order without a queue. Several workers keep the disk busy; reading from memory, adding and
hashing go through a `ComputePool`. Memory is `workers` x three buffers of one piece, whatever the model's size and the number
of targets; a fourth where the base's mean row takes part. Knows nothing of what a target does with the bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite, lcm
from typing import ParamSpec, Protocol, TypeVar

from baize_engine.backend.adders import Adder, Operand, Stats
from baize_engine.checkpoint.buffers import HUGE
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.manifest import TensorRecord
from baize_engine.checkpoint.tensor_reader import FileRange, TensorReader
from baize_engine.interrupts import Check, in_threads
from baize_engine.progress import Advance, no_progress
from baize_engine.recovery.compute_pool import ComputePool
from baize_engine.recovery.memory import PIECE, WORKERS
from baize_engine.recovery.plan import Job, Plan
from baize_engine.recovery.vocabulary_growth import BaseRows, whole_base

Files = tuple[FileRange, FileRange]  # of the base's tensor and of the other side's
P = ParamSpec("P")
T = TypeVar("T")


class Sink(Protocol):
    """Takes the bytes of a result: `CheckpointWriter` writes them to files."""

    def write(self, name: str, offset: int, view: memoryview) -> None:
        """Takes `view` from byte `offset` of the tensor `name` on. Called in order for each tensor, from any worker."""


class Target:
    """One result of a pass over the base: its plan, where its bytes go, and the records of its finished tensors by name.

    Without a sink tensors are only counted and hashed. What is in `records` before the pass is not made again. `check` is
    called with each tensor that is whole, from any worker, before its record is kept; what it raises ends the pass.
    """

    def __init__(
        self, plan: Plan, sink: Sink | None = None, check: Callable[[Job, TensorRecord], None] | None = None
    ) -> None:
        self.plan, self.sink, self.check = plan, sink, check
        self.records: dict[str, TensorRecord] = {}


@dataclass
class Task:
    """One tensor of one target to be made: its job, its reader, its hash and what was counted so far."""

    target: Target
    job: Job
    digest: hashlib._Hash | None  # None: records have no SHA-256
    reader: TensorReader = field(init=False)
    total: float = 0.0
    overflowed: int = 0
    nonfinite: int = 0

    def count(self, out: memoryview, stats: Stats) -> None:
        """The next piece of the result."""
        if self.digest is not None:
            self.digest.update(out)
        sums, overflowed, nonfinite = stats
        for value in sums:
            self.total += value
        self.overflowed += overflowed
        self.nonfinite += nonfinite

    def finish(self) -> None:
        """Hands the record to the target, once that has checked it."""
        job, total = self.job, self.total if isfinite(self.total) else None
        sha256 = "" if self.digest is None else self.digest.hexdigest()
        record = TensorRecord(job.dtype, job.other.shape, sha256, total, self.overflowed, self.nonfinite)
        if self.target.check is not None:
            self.target.check(job, record)
        self.target.records[job.name] = record


def stream(
    targets: Sequence[Target],
    make_adder: Callable[[], Adder],
    *,
    workers: int = WORKERS,
    piece: int = PIECE,
    progress: Advance = no_progress,
    hashing: bool = True,
) -> None:
    """Makes all tensors that the targets lack in one pass over the base, which their plans share.

    `piece`: elements that are read at a time, a multiple of diff_add's chunk. `progress` is called with the bytes read and
    written since its last call, from any worker. `hashing`: whether records get a SHA-256. Records end up in the order of each
    plan. The first exception of a worker, or Ctrl-C, stops the others at their next piece and is raised here when they have
    stopped.
    """
    from baize_engine import _C

    # popped, so that a tensor's readers, which may hold 256 KiB each, end with it
    pending, lock = deque(_groups(targets, hashing)), threading.Lock()
    count = max(1, min(workers, len(pending)))
    compute = ComputePool(count)
    largest = max((max(each.job.base.numel, each.job.other.numel) for group in pending for each in group), default=0)
    piece = min(piece, max(1, -(-largest // _C.CHUNK)) * _C.CHUNK)  # no memory that nothing will fill

    def take() -> list[Task] | None:
        with lock:
            return pending.popleft() if pending else None

    def work(_: int, check: Check) -> None:
        worker = _Worker(make_adder(), piece, progress, check, compute)
        while (group := take()) is not None:
            worker.make(group)

    in_threads(work, range(count), count, beside=compute)
    for target in targets:
        target.records = {name: target.records[name] for name in target.plan.names}


def _groups(targets: Iterable[Target], hashing: bool) -> list[list[Task]]:
    """What is left to do, base tensor by base tensor.

    The largest first: at the end no worker goes on for long when the others have nothing left.
    """
    groups: dict[str, list[Task]] = {}
    for target in targets:
        for job in target.plan.jobs:
            if job.name not in target.records:
                digest = hashlib.sha256() if hashing else None
                groups.setdefault(job.name, []).append(Task(target, job, digest))
    return sorted(groups.values(), key=lambda group: -group[0].job.base.nbytes)


def traffic(targets: Iterable[Target], *, left: bool = False) -> int:
    """Bytes that a pass for `targets` reads and writes, or what of it is left: the base's once, however many targets."""
    total, bases = 0, dict[str, int]()
    for target in targets:
        for job in target.plan.jobs:
            if not (left and job.name in target.records):
                total += job.traffic - job.base.nbytes
                bases.setdefault(job.name, job.base.nbytes)
    return total + sum(bases.values())


class _Worker:
    """The buffers of one worker, for one thread at a time, and the loop over one base tensor's pieces."""

    def __init__(self, adder: Adder, piece: int, progress: Advance, check: Check, compute: ComputePool) -> None:
        self.adder, self.piece, self.progress, self.check, self.compute = adder, piece, progress, check, compute
        # room for float32; pages that narrower types leave alone cost nothing
        self.base_buffer, self.other_buffer, self.out_buffer = (adder.buffer(piece * 4 + adder.slack) for _ in range(3))
        self.direct = adder.slack > 0 and piece * 4 >= HUGE

    def make(self, group: list[Task]) -> None:
        """Makes all tensors of a group: they share a tensor of the base."""
        jobs = [each.job for each in group]
        with ExitStack() as stack:
            base = stack.enter_context(TensorReader(whole_base(jobs), self.direct))
            for each in group:
                each.reader = stack.enter_context(TensorReader(each.job.other, self.direct))
            rows = BaseRows(jobs, base, self.base_buffer, group[0].target.plan.subtract)
            piece = piece_of(jobs[0], self.piece)
            for begin in range(0, max(job.other.numel for job in jobs), piece):
                end = begin + piece
                self.check()
                files = _files(rows, group, begin)
                base.prefetch(end, end + piece)
                if files is None:
                    self.progress(self._read(base, rows.read, begin, end))
                for each in group:
                    each.reader.prefetch(end, end + piece)
                    self._combine(each, rows, files, begin, min(end, each.job.other.numel))
        for each in group:
            each.finish()

    def _read(self, reader: TensorReader, read: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Reads. From the page cache that is CPU-bound work, for the pool; other reads wait for the disk, not for a
        processor."""
        return self.compute.run(read, *arguments, **named) if reader.cached else read(*arguments, **named)

    def _combine(self, task: Task, rows: BaseRows, files: Files | None, begin: int, end: int) -> None:
        """Elements [begin, end) of one tensor."""
        if begin >= end:
            return
        job = task.job
        out = self.out_buffer[: (end - begin) * ITEMSIZE[job.dtype]]
        if files is not None:
            self.progress(self.compute.run(self._add_files, task, rows, files, begin, end, out))
        else:
            other = self._read(task.reader, task.reader.read, begin, end, self.other_buffer)
            self.compute.run(self._add, task, rows, other, begin, end, out)
        if task.target.sink is not None:
            task.target.sink.write(job.name, begin * ITEMSIZE[job.dtype], out)
        self.progress((end - begin) * ITEMSIZE[job.other.dtype] + len(out))

    def _add(self, task: Task, rows: BaseRows, other: memoryview, begin: int, end: int, out: memoryview) -> None:
        """Adds and hashes."""
        job = task.job
        base = rows.operand(begin, end, self.adder.buffer, job)
        stats = self.adder.add(base, Operand(other, job.other.dtype), Operand(out, job.dtype), subtract=rows.subtract)
        task.count(out, stats)

    def _add_files(self, task: Task, rows: BaseRows, files: Files, begin: int, end: int, out: memoryview) -> int:
        """Reads, adds and hashes; returns the bytes read of the base."""
        job = task.job
        stats = self.adder.add_files(*files, Operand(out, job.dtype), subtract=rows.subtract)
        if stats is None:
            read = rows.read(begin, end)
            self._add(task, rows, task.reader.read(begin, end, self.other_buffer), begin, end, out)
            return read
        task.count(out, stats)
        return (end - begin) * ITEMSIZE[job.base.dtype]


def _files(rows: BaseRows, group: list[Task], begin: int) -> Files | None:
    """Where both sides of a group's only tensor lie in cached files, if they do, and nothing is to be done to the base's."""
    if len(group) != 1 or rows.grows:
        return None
    base, other = rows.reader.file_range(begin), group[0].reader.file_range(begin)
    return None if base is None or other is None else (base, other)


def piece_of(job: Job, most: int) -> int:
    """Elements of a piece: at most `most`, whole chunks of diff_add, and whole heads where the base's rows are reordered."""
    from baize_engine import _C

    step = lcm(_C.CHUNK, job.base.grain)
    return most // step * step or most
