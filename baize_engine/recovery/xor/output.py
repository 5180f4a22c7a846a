"""One result of `xor`: its files, written or resumed, and its manifest."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest
from baize_engine.checkpoint.os_errors import stat_of, writing
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder
from baize_engine.errors import OutputError
from baize_engine.interrupts import Check, in_threads
from baize_engine.progress import Progress
from baize_engine.recovery.journal import is_unfinished
from baize_engine.recovery.journaled_output import JournaledOutput
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.verify import XOR
from baize_engine.recovery.xor.checks import THREADS, XorChecks
from baize_engine.recovery.xor.decode import decoded
from baize_engine.recovery.xor.job import XorJob
from baize_engine.recovery.xor.payload import WEIGHTS, Payload

SPARE = 64 << 20  # bytes of the disk that unpacking leaves free


@dataclass(frozen=True)
class FileRecord:
    """A file of the result that is whole on the disk."""

    bytes: int
    sha256: str


def file_record(item: Mapping[str, Any]) -> FileRecord:
    """A FileRecord from its JSON form. KeyError or TypeError if the form is wrong."""
    record = FileRecord(item["bytes"], item["sha256"])
    if type(record.bytes) is not int or type(record.sha256) is not str:
        raise TypeError("wanted bytes and SHA-256")
    return record


class XorOutput(JournaledOutput[FileRecord]):
    """The result in `folder`: `write` makes its files, small ones first, and gives all of them their names at the end."""

    parts = "files"
    parse = staticmethod(file_record)

    def __init__(self, payload: Payload, folder: Path, checks: XorChecks, resume: bool) -> None:
        self.checks = checks
        self.records: dict[str, FileRecord] = {}  # of the files that are whole, by name
        # in the order in which files get their names: an index last, because it makes a model of them, and weights before it
        self.jobs = sorted(
            payload.jobs, key=lambda job: (job.name.endswith(".index.json"), job.name.endswith(WEIGHTS), job.name)
        )
        sources = Sources(payload.stats, base=payload.base_files, payload=[job.payload for job in self.jobs])
        files = OutputFolder(folder, resume and is_unfinished(folder))
        nbytes = sum(job.nbytes or job.payload_size for job in self.jobs)
        super().__init__(XOR, files, nbytes, sources, resume)
        if self.finished_before:
            self.resumed = len(self.jobs)

    def is_of(self, manifest: Manifest) -> bool:
        return set(manifest.files) == set(self.names())

    def count(self) -> int:
        return len(self.jobs)

    def names(self) -> list[str]:
        return [job.name for job in self.jobs]

    def find_finished(self) -> Manifest | None:
        manifest = super().find_finished()
        if manifest is not None:  # the list of sums may be another than the earlier run's
            in_threads(
                lambda job, check: self.checks.check_file(job, self.folder / job.name, check), self.jobs, THREADS
            )
        return manifest

    def write(self, progress: bool) -> Manifest:
        """Writes what is not written yet, and returns the manifest."""
        with ExitStack() as stack:
            self.lock(stack)
            self.open(stack)
            if self.files.resume:
                self._resume()
            self._write_files(progress)
            self.sources.check()
            manifest = self._manifest()
            stack.callback(self.forget_journal)  # at the end: until then resume knows all
            self.files.place(MANIFEST_NAME, manifest.encode())
            *first, last = self.names()
            for name in first:
                self.files.rename(name)
            self.files.sync_names()  # all other names are on the disk before the one that makes it a model
            self.files.rename(last)
            self.files.keep()
        return manifest

    def _resume(self) -> None:
        """Notes the files of a killed run whose bytes on disk still hash to its journal; all are unfinished again."""
        for name in (*reversed(self.names()), MANIFEST_NAME):
            final = self.folder / name
            if final.exists():
                with writing(final, "be renamed"):
                    os.rename(final, self.folder / (name + PARTIAL))
        in_threads(self._resume_file, self.jobs, THREADS)
        self.resumed = len(self.records)

    def _resume_file(self, job: XorJob, check: Check) -> None:
        path, record = self.folder / (job.name + PARTIAL), self.journal.finished.get(job.name)
        if record is None:
            return
        whole = path.is_file() and stat_of(path).st_size == record.bytes
        if whole and self.checks.check_file(job, path, check, record.sha256):
            self.records[job.name] = record
        else:
            del self.journal.finished[job.name]  # its bytes were lost

    def _write_files(self, progress: bool) -> None:
        left = sorted((job for job in self.jobs if job.name not in self.records), key=lambda job: job.payload_size)
        total = sum(job.payload_size for job in self.jobs)

        def write_file(job: XorJob, check: Check) -> None:
            record = self._write_file(job, bar, check)
            self.journal.add(job.name, record)
            self.records[job.name] = record

        with Progress(total, "B", progress, XOR) as bar:
            bar.add(total - sum(job.payload_size for job in left))
            in_threads(write_file, left, THREADS)

    def _write_file(self, job: XorJob, bar: Progress, check: Check) -> FileRecord:
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

    def _check_room(self, job: XorJob) -> None:
        """Keeps gzip data, whose unpacked size is not known in advance, from filling the disk."""
        with writing(self.folder, "be measured"):
            stat = os.statvfs(self.folder)
        free = stat.f_bavail * stat.f_frsize
        if free < SPARE:
            raise OutputError(
                errno.ENOSPC,
                f"{self.folder / job.name}: while {job.payload} was being unpacked, the disk had {free >> 20} MiB free, wanted "
                f"at least {SPARE >> 20} MiB at all times",
            )

    def _manifest(self) -> Manifest:
        return Manifest(
            operation=XOR,
            backend="numpy",
            versions={**self.versions, "numpy": numpy.__version__},
            sources=self.sources.records,
            tensors={},
            files={job.name: self.records[job.name].sha256 for job in self.jobs},
            notes=[line for line in self.checks.report() if not line.startswith("warning")],
        )
