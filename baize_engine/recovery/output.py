"""One result of `recover` or `make_diff`, from its checked plan to its manifest."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from baize_engine.checkpoint import side_files
from baize_engine.checkpoint.base import Base
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, TensorRecord, sha256_of, tensor_record
from baize_engine.checkpoint.side_files import result_problems
from baize_engine.checkpoint.writer import CheckpointWriter, lay_out
from baize_engine.errors import BaizeWarning, CheckpointError, MismatchError
from baize_engine.interrupts import Check, in_threads
from baize_engine.recovery.checks import base_rows, checked_plan
from baize_engine.recovery.expect import Expectation
from baize_engine.recovery.hashing import THREADS, digests, hash_file
from baize_engine.recovery.journal import is_unfinished
from baize_engine.recovery.journaled_output import JournaledOutput
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Job
from baize_engine.recovery.result import Result
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.stream import Target
from baize_engine.recovery.vocabulary_growth import MeanRow


@dataclass(frozen=True)
class OutputRequest:
    """What one result is made of besides the base, the folder to write, and what is expected of it."""

    other: CheckpointIndex  # recover's diff, make_diff's finetuned model
    folder: Path
    expect: Expectation = field(default_factory=Expectation)


class Output(JournaledOutput[TensorRecord]):
    """One result: planned and checked where it is made, then opened, its `target` filled by `stream`, and finished.

    Making one writes nothing. Errors are those that `recover` raises before it writes. An output whose `manifest` is there from
    the beginning was finished by an earlier run: nothing is left to do.
    """

    files: CheckpointWriter
    parts = "tensors"
    parse = staticmethod(tensor_record)

    def __init__(self, base: Base, request: OutputRequest, options: RecoveryOptions, mean: MeanRow) -> None:
        self.base, self.options, self.expect = base, options, request.expect
        self.other = other = request.other
        self.plan = plan = checked_plan(base, other, options, mean)
        sources = Sources(base.index.stats, other.stats, **{"base": base.index.files, options.role: other.files})
        self.side_files = side_files.collect(
            other.folder, base.index.folder, options.dtype, plan.vocab_size, options.follow_links
        )
        layout = lay_out(job.spec for job in plan.jobs)
        files = CheckpointWriter(request.folder, layout, options.resume and is_unfinished(request.folder))
        self.target = Target(plan, files, self._check_tensor)
        self.met: list[str] = []  # expectations that were met, a line each
        super().__init__(options.operation, files, files.nbytes, sources, options.resume)
        if self.finished_before:
            self.resumed = len(plan.jobs)

    def find_finished(self) -> Manifest | None:
        try:
            return super().find_finished()
        except CheckpointError:
            return None  # not one of ours: the folder is in use for something else

    def is_of(self, manifest: Manifest) -> bool:
        plan, tensors = self.plan, {name: (each.dtype, each.shape) for name, each in manifest.tensors.items()}
        return (
            tensors == {job.name: (job.dtype, job.other.shape) for job in plan.jobs}
            and (manifest.new_rows, manifest.stored) == (plan.new_rows, list(plan.stored))
            and manifest.files == {name: sha256_of(content) for name, content in self.side_files.items()}
        )

    def identity(self) -> dict[str, object]:
        return {
            "tensors": [(job.name, job.dtype, job.other.shape, job.base.shape, job.fill) for job in self.plan.jobs],
            "headers": [hashlib.sha256(shard.header).hexdigest() for shard in self.files.shards],
        }

    def count(self) -> int:
        return len(self.plan.jobs)

    def names(self) -> list[str]:
        return list(self.side_files)

    @property
    def bytes_needed(self) -> int:
        """Bytes of the disk that are still needed; 0 where an earlier run has taken them."""
        if self.finished_before or self.files.resume:
            return 0
        return self.nbytes + sum(map(len, self.side_files.values()))

    def warn(self) -> None:
        """Warns, before the long work, of whatever will keep the result from running or taking text."""
        plan = self.plan
        for reason in result_problems(self.side_files, plan.vocab_size, plan.layers, plan.stored, self.folder):
            warnings.warn(reason, BaizeWarning, stacklevel=4)  # of the caller of `recover`

    def open(self, stack: ExitStack) -> None:
        """Makes the folder, the journal and the shards, or resumes them with the tensors whose bytes hash as noted."""
        super().open(stack)
        self.files.open_shards()
        noted = [job for job in self.plan.jobs if job.name in self.journal.finished]
        for job, record in zip(noted, in_threads(self._intact, noted, THREADS), strict=True):
            if record is None:
                del self.journal.finished[job.name]  # its bytes were lost
            else:
                self.target.records[job.name] = record
        self.resumed = len(self.target.records)

    def _intact(self, job: Job, check: Check) -> TensorRecord | None:
        """The journal's record of a tensor, if the bytes on disk still hash to it."""
        record = self.journal.finished[job.name]
        path, begin = self.files.partial_path(job.name)
        return record if digests(path, begin, job.spec.nbytes, check)["sha256"] == record.sha256 else None

    def _check_tensor(self, job: Job, record: TensorRecord) -> None:
        """Checks a finished tensor and records it, so that a wrong base, or a source that is being changed, shows at once."""
        self.expect.check_tensor(job.name, record)
        self.sources.check({part.path for entry in (job.base, job.other) for part in entry.parts})
        self.journal.add(job.name, record)

    def check_records(self) -> None:
        """MismatchError where the finished tensors are not what is expected."""
        records = self.target.records if self.manifest is None else self.manifest.tensors
        try:
            self.met = self.expect.check_after(records, self.base, self.other)
        except MismatchError as error:
            raise MismatchError(f"{self.folder}: {error}") from None

    def make_manifest(self, backend: str, base_files: list[SourceFile]) -> None:
        """Sets `manifest`. `base_files`: the base's files, hashed where that is asked for."""
        self.manifest = Manifest(
            operation=self.options.operation,
            backend=backend,
            versions=self.versions,
            sources={"base": base_files, self.options.role: self.recorded(self.options.role)},
            tensors=self.target.records,
            files={name: sha256_of(content) for name, content in self.side_files.items()},
            base_rows=base_rows(self.plan) if self.plan.subtract else {},
            new_rows=self.plan.new_rows,
            stored=list(self.plan.stored),
            notes=list(self.plan.notes),
        )

    def recorded(self, role: str) -> list[SourceFile]:
        """The source files of a role as they were before the run, hashed where that is asked for."""
        files = self.sources.records[role]
        if not self.options.hash_sources:
            return files
        digests = in_threads(hash_file, (self.base.index if role == "base" else self.other).files, THREADS)
        return [replace(file, sha256=digest) for file, digest in zip(files, digests, strict=True)]

    def finish(self, stack: ExitStack) -> None:
        """Gives all files their names. The journal is removed by `stack`, after all results: until then resume knows all."""
        assert self.manifest is not None
        stack.callback(self.forget_journal)
        self.files.finish({**self.side_files, MANIFEST_NAME: self.manifest.encode()})

    def result(self) -> Result:
        """What `recover` returns."""
        assert self.manifest is not None
        skipped, extra_rows = self.plan.skipped, self.plan.extra_rows
        return Result(
            self.folder, self.manifest, skipped, extra_rows, self.resumed, tuple(self.met), self.finished_before
        )
