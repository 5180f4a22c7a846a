"""One result of `xor`: its files, written or resumed, and its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

from baize_engine import __version__
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from baize_engine.checkpoint.os_errors import stat_of, writing
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder
from baize_engine.errors import OutputError
from baize_engine.interrupts import Check, deferred, in_threads
from baize_engine.progress import Progress
from baize_engine.recovery.earlier_run import check_as_written, without_hashes
from baize_engine.recovery.hashing import digests_of_range
from baize_engine.recovery.journal import JOURNAL_NAME, Journal
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.verify import XOR
from baize_engine.recovery.xor.checks import THREADS, XorChecks
from baize_engine.recovery.xor.decode import decoded
from baize_engine.recovery.xor.job import Job
from baize_engine.recovery.xor.payload import WEIGHTS, Payload

SPARE = 64 << 20  # bytes of the disk that unpacking leaves free


@dataclass(frozen=True)
class FileRecord:
    """A file of the result that is whole on the disk."""

    bytes: int
    sha256: str


class XorOutput:
    """The result in `folder`: `write` makes its files, small ones first, and gives all of them their names at the end."""

    def __init__(self, payload: Payload, folder: Path, checks: XorChecks, resume: bool) -> None:
        self.folder, self.checks = folder, checks
        # in the order in which files get their names: an index last, because it makes a model of them, and weights before it
        self.jobs = sorted(
            payload.jobs, key=lambda job: (job.name.endswith(".index.json"), job.name.endswith(WEIGHTS), job.name)
        )
        self.nbytes = sum(job.nbytes or job.payload_size for job in self.jobs)
        self.sources = Sources([payload])
        self.source_files = {
            "base": self.sources.records(payload.base_files),
            "payload": self.sources.records(job.payload for job in self.jobs),
        }
        self.unfinished = (folder / JOURNAL_NAME).exists()
        self.resume = resume and self.unfinished
        self.files = OutputFolder(folder, self.resume)
        self.journal: Journal[FileRecord]
        self.records: dict[str, FileRecord] = {}  # of the files that are whole, by name
        self.resumed = 0  # files that a killed run had finished

    def finished(self) -> Manifest | None:
        """The manifest, if the folder holds just this result, finished and as written by an earlier run."""
        if self.unfinished or not (self.folder / MANIFEST_NAME).is_file():
            return None
        manifest = read_manifest(self.folder)
        names = {job.name for job in self.jobs}
        if (manifest.operation, set(manifest.files)) != (XOR, names):
            return None
        if without_hashes(manifest.sources) != self.source_files:
            return None
        check_as_written(self.folder)
        in_threads(lambda job, check: self.checks.check_file(job, self.folder / job.name, check), self.jobs, THREADS)
        return manifest

    def write(self, progress: bool) -> Manifest:
        """Writes what is not written yet, and returns the manifest. An exception removes what was made."""
        with ExitStack() as stack:
            stack.callback(self.files.discard)  # before anything is made: Ctrl-C may come between any two lines
            if self.resume:  # the journal is read and locked before anything is changed
                self._open_journal(stack)
            self.files.make_folder(0)
            with deferred():  # what Ctrl-C found made and not yet tracked would stay
                if not self.resume:
                    self._open_journal(stack)
                self.files.track(self.journal.path)
            if self.resume:
                self._resume()
            self.resumed = len(self.records)
            self._write_files(progress)
            self.sources.check()
            manifest = self._manifest()
            stack.callback(self.journal.remove)  # at the end: until then resume knows all
            self.files.place(MANIFEST_NAME, manifest.encode())
            *first, last = self.jobs
            for job in first:
                self.files.rename(job.name)
            self.files.sync_names()  # all other names are on the disk before the one that makes it a model
            self.files.rename(last.name)
            self.files.keep()
        return manifest

    def _open_journal(self, stack: ExitStack) -> None:
        sources = {role: [asdict(file) for file in files] for role, files in self.source_files.items()}
        run = hashlib.sha256(json.dumps({"operation": XOR, "sources": sources}, sort_keys=True).encode()).hexdigest()
        self.journal = stack.enter_context(closing(Journal(self.folder, run, _file_record, self.resume)))

    def _resume(self) -> None:
        """Notes the files of a killed run whose bytes on disk still hash to its journal; all are unfinished again."""
        for name in (*(job.name for job in reversed(self.jobs)), MANIFEST_NAME):
            final, partial = self.folder / name, self.folder / (name + PARTIAL)
            self.files.track(final)
            self.files.track(partial)
            if final.exists():
                with writing(final, "be renamed"):
                    os.rename(final, partial)
        in_threads(self._resume_file, self.jobs, THREADS)

    def _resume_file(self, job: Job, check: Check) -> None:
        path, record = self.folder / (job.name + PARTIAL), self.journal.finished.get(job.name)
        if record is None or not path.is_file() or stat_of(path).st_size != record.bytes:
            return
        digests = digests_of_range(path, 0, record.bytes, self.checks.algorithms(job), check=check)
        if digests["sha256"] == record.sha256:
            self.checks.check_digests(job, path, digests)
            self.checks.check_form(job, path, check)
            self.records[job.name] = record

    def _write_files(self, progress: bool) -> None:
        left = sorted((job for job in self.jobs if job.name not in self.records), key=lambda job: job.payload_size)
        total = sum(job.payload_size for job in self.jobs)

        def write_file(job: Job, check: Check) -> None:
            record = self._write_file(job, bar, check)
            self.journal.add(job.name, record)
            self.records[job.name] = record

        with Progress(total, "B", progress, XOR) as bar:
            bar.add(total - sum(job.payload_size for job in left))
            in_threads(write_file, left, THREADS)

    def _write_file(self, job: Job, bar: Progress, check: Check) -> FileRecord:
        hashes = {name: hashlib.new(name, usedforsecurity=False) for name in self.checks.algorithms(job)}
        position = 0
        with closing(self.files.open_file(job.name, job.nbytes or 0)) as file:
            with closing(decoded(job, progress=bar.add)) as pieces:
                for view in pieces:
                    check()
                    if job.packed:
                        self._check_room(job)
                    for digest in hashes.values():
                        digest.update(view)
                    file.write_at(position, view)
                    position += len(view)
            digests = {name: digest.hexdigest() for name, digest in hashes.items()}
            self.checks.check_digests(job, file.path, digests)
            file.sync()
        self.checks.check_form(job, file.path, check)
        self.sources.check({job.payload, job.base or job.payload})  # a source that is being changed shows at once
        return FileRecord(position, digests["sha256"])

    def _check_room(self, job: Job) -> None:
        """What gzip data unpack to is not known before: they must not fill the disk."""
        with writing(self.folder, "be measured"):
            stat = os.statvfs(self.folder)
        free = stat.f_bavail * stat.f_frsize
        if free < SPARE:
            raise OutputError(
                errno.ENOSPC,
                f"{self.folder / job.name}: while {job.payload} was unpacked the disk came to {free >> 20} MiB, wanted at "
                f"least {SPARE >> 20} at any time",
            )

    def _manifest(self) -> Manifest:
        return Manifest(
            operation=XOR,
            backend="numpy",
            versions={"baize_engine": __version__, "python": platform.python_version(), "numpy": numpy.__version__},
            sources=self.source_files,
            tensors={},
            files={job.name: self.records[job.name].sha256 for job in self.jobs},
            notes=[line for line in self.checks.report() if not line.startswith("warning")],
        )


def _file_record(item: Mapping[str, Any]) -> FileRecord:
    record = FileRecord(item["bytes"], item["sha256"])
    if type(record.bytes) is not int or type(record.sha256) is not str:
        raise TypeError("wanted bytes and SHA-256")
    return record
