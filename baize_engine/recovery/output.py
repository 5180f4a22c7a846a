"""One result of `recover` or `make_diff`, from its checked plan to its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import warnings
from array import array
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

from baize_engine import __version__
from baize_engine.checkpoint import side_files
from baize_engine.checkpoint.base import Base
from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, TensorRecord, sha256_of, tensor_record
from baize_engine.checkpoint.output_folder import PARTIAL, check_output, finished_before
from baize_engine.checkpoint.side_files import result_problems
from baize_engine.checkpoint.writer import CheckpointWriter, lay_out
from baize_engine.errors import BaizeWarning, MismatchError, OutputError
from baize_engine.interrupts import deferred, in_threads
from baize_engine.recovery.checks import base_rows, checked_plan
from baize_engine.recovery.earlier_run import finished_result, intact_tensors
from baize_engine.recovery.expect import Expectation
from baize_engine.recovery.hashing import THREADS, hash_file
from baize_engine.recovery.journal import JOURNAL_NAME, Journal, refuse_busy
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Job
from baize_engine.recovery.result import Result
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.stream import Target


class Output(Target):
    """One result: planned and checked where it is made, then opened, filled by `stream`, and finished.

    Making one writes nothing. Errors are those that `recover` raises before it writes. An output whose `manifest` is there from
    the beginning was finished by an earlier run: nothing is left to do.
    """

    sink: CheckpointWriter
    journal: Journal[TensorRecord]

    def __init__(
        self,
        base: Base,
        other: CheckpointIndex,
        folder: Path,
        options: RecoveryOptions,
        expect: Expectation,
        base_mean: Callable[[Entry], array[float]],
    ) -> None:
        self.base, self.other, self.folder, self.options, self.expect = base, other, folder, options, expect
        plan = checked_plan(base, other, options, base_mean)
        self.sources = Sources([base.index, other])
        self.source_files = {
            "base": self.sources.records(base.index.files),
            options.role: self.sources.records(other.files),
        }
        self.side_files = side_files.collect(
            other.folder, base.index.folder, options.dtype, plan.vocab_size, options.follow_links
        )
        unfinished = (folder / JOURNAL_NAME).exists()
        self.resume = options.resume and unfinished
        self.manifest: Manifest | None = None
        if not unfinished:
            self.manifest = finished_result(folder, plan, options, self.source_files, self.side_files)
        self.finished_before = self.manifest is not None
        super().__init__(plan, CheckpointWriter(folder, lay_out(job.spec for job in plan.jobs), self.resume))
        self.resumed = len(plan.jobs) if self.finished_before else 0  # tensors that an earlier run had finished
        self.met: list[str] = []  # expectations that were met, a line each
        self._check_folder(unfinished)

    def _check_folder(self, unfinished: bool) -> None:
        if self.finished_before and not self.options.resume:
            raise finished_before(self.folder)
        if self.finished_before or self.resume:
            return
        refuse_busy(self.folder)
        if (self.folder / MANIFEST_NAME).exists() and not unfinished:
            raise OutputError(
                errno.ENOTEMPTY,
                f"{self.folder} is not empty: it holds a finished result of other sources, options, or files beside the "
                "weights: name another folder, or remove it",
            )
        check_output(self.folder, self.sink.nbytes)

    @property
    def bytes_needed(self) -> int:
        """Bytes of the disk that are still needed; 0 where an earlier run has taken them."""
        if self.finished_before or self.resume:
            return 0
        return self.sink.nbytes + sum(map(len, self.side_files.values()))

    @property
    def fingerprint(self) -> str:
        """Identifies the run to resume: equal for the same operation, tensors, layout and sources (name, size, time)."""
        identity = {
            "operation": self.options.operation,
            "tensors": [(job.name, job.dtype, job.other.shape, job.base.shape, job.fill) for job in self.plan.jobs],
            "headers": [hashlib.sha256(shard.header).hexdigest() for shard in self.sink.shards],
            "sources": {role: [asdict(file) for file in files] for role, files in self.source_files.items()},
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def warn(self) -> None:
        """Warns, before the long work, of what the result will not do."""
        plan = self.plan
        for reason in result_problems(self.side_files, plan.vocab_size, plan.layers, plan.stored, self.folder):
            warnings.warn(reason, BaizeWarning, stacklevel=4)  # of the caller of `recover`

    def _open_journal(self, stack: ExitStack) -> None:
        self.journal = stack.enter_context(
            closing(Journal(self.folder, self.fingerprint, tensor_record, resume=self.resume))
        )

    def lock(self, stack: ExitStack) -> None:
        """Reads and locks the journal of a run to resume, which changes nothing. A new journal needs the folder first."""
        if self.resume:
            self._open_journal(stack)

    def open(self, stack: ExitStack) -> None:
        """Makes the folder and its files, or resumes them. `stack` removes what was made and is not finished."""
        stack.callback(self.sink.discard)  # before anything is made: Ctrl-C may come between any two lines
        self.sink.make_folder(self.sink.nbytes)
        with deferred():  # what Ctrl-C found made and not yet tracked would stay
            if not self.resume:
                # before the shards: it decides which of two recoveries has the folder, and resume looks for it
                self._open_journal(stack)
            self.sink.track(self.journal.path)
        if self.resume:  # files that a run killed in `finish` has renamed already
            for name in (*self.side_files, MANIFEST_NAME):
                self.sink.track(self.folder / name)
                self.sink.track(self.folder / (name + PARTIAL))
        self.sink.open_shards()
        self.records = intact_tensors(self.journal.finished, self.sink, self.plan)
        self.resumed = len(self.records)

    def finish_tensor(self, job: Job, record: TensorRecord) -> None:
        """Checks a tensor that is whole and notes it: a wrong base, or a source that is being changed, shows at once."""
        self.expect.check_tensor(job.name, record)
        self.sources.check({part.path for entry in (job.base, job.other) for part in entry.parts})
        self.journal.add(job.name, record)
        super().finish_tensor(job, record)

    def check_records(self) -> None:
        """MismatchError where the finished tensors are not what is expected."""
        records = self.records if self.manifest is None else self.manifest.tensors
        try:
            self.met = self.expect.check_after(records, self.base, self.other)
        except MismatchError as error:
            raise MismatchError(f"{self.folder}: {error}") from None

    def make_manifest(self, backend: str, base_files: list[SourceFile]) -> None:
        """Sets `manifest`. `base_files`: the base's files, hashed where that is asked for."""
        self.manifest = Manifest(
            operation=self.options.operation,
            backend=backend,
            versions={"baize_engine": __version__, "python": platform.python_version()},
            sources={"base": base_files, self.options.role: self.recorded(self.options.role)},
            tensors=self.records,
            files={name: sha256_of(content) for name, content in self.side_files.items()},
            base_rows=base_rows(self.plan) if self.plan.subtract else {},
            new_rows=self.plan.new_rows,
            stored=list(self.plan.stored),
            notes=list(self.plan.notes),
        )

    def recorded(self, role: str) -> list[SourceFile]:
        """The source files of a role as they were before the run, hashed where that is asked for."""
        files = self.source_files[role]
        if not self.options.hash_sources:
            return files
        digests = in_threads(hash_file, (self.base.index if role == "base" else self.other).files, THREADS)
        return [replace(file, sha256=digest) for file, digest in zip(files, digests, strict=True)]

    def finish(self, stack: ExitStack) -> None:
        """Gives all files their names. The journal is removed by `stack`, after all results: until then resume knows all."""
        assert self.manifest is not None
        stack.callback(self.journal.remove)
        self.sink.finish({**self.side_files, MANIFEST_NAME: self.manifest.encode()})

    def result(self) -> Result:
        """What `recover` returns."""
        assert self.manifest is not None
        skipped, extra_rows = self.plan.skipped, self.plan.extra_rows
        return Result(
            self.folder, self.manifest, skipped, extra_rows, self.resumed, tuple(self.met), self.finished_before
        )
