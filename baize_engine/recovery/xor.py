"""`xor`: a finetune that was published as XOR of whole files with its base's becomes those files again.

Everything is checked that names and beginnings tell, before the first byte is written; small files come first, so that a
wrong base shows at once. Each file is noted in the journal when it is whole on the disk, and all get their names at the end.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from baize_engine import __version__
from baize_engine.checkpoint.hub import local_path
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, read_manifest
from baize_engine.checkpoint.os_errors import stat_of, writing
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder, check_output, finished_before
from baize_engine.errors import OutputError
from baize_engine.interrupts import Check, deferred, in_threads
from baize_engine.progress import Progress
from baize_engine.recovery.hashing import digests_of_range
from baize_engine.recovery.journal import JOURNAL_NAME, Journal, refuse_busy
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.verify import XOR, verify
from baize_engine.recovery.xor_bytes import decoded
from baize_engine.recovery.xor_checks import THREADS, XorChecks
from baize_engine.recovery.xor_payload import WEIGHTS, Job, Payload, read_payload

SPARE = 64 << 20  # bytes of the disk that unpacking leaves free


@dataclass(frozen=True)
class FileRecord:
    """A file of the result that is whole on the disk."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class XorResult:
    """What was made, and what a user should hear of, a line each."""

    folder: Path
    manifest: Manifest
    resumed: int  # files that an earlier, killed run had finished
    told: tuple[str, ...]
    finished_before: bool = False  # nothing was done: an earlier run had finished it, and it is as written


def xor(
    path_raw: str | os.PathLike[str],
    path_payload: str | os.PathLike[str],
    path_tuned: str | os.PathLike[str],
    resume: bool = False,
    progress: bool = True,
    *,
    expect_md5: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
) -> XorResult:
    """Writes the finetune whose files, XORed with those of `path_raw`, are `path_payload`'s, to the new folder `path_tuned`.

    Two forms, told by the payload's names (`xor_payload.py` has their details): file by file with the base's file of the same
    name, gzip data unpacked (OASST 30B, Pygmalion); or NAME.<SHA-256>.enc with one key, consolidated.00.pth in `path_raw`, or
    `path_raw` itself (BELLE, TechGPT). Inputs may be hub ids. The result holds the published files byte for byte and
    baize_manifest.json, which `verify` reads.

    `expect_md5` is a text with lines of md5sum's or sha256sum's, such as the model's card: base, key or payload are held
    against it before the work, each file of the result as it is done; of a name that stands there twice the last is the
    result's, the one before the base's. `resume` takes up what a killed run of the same files left: what still hashes to its
    note is not redone. `follow_links`: also configs and tokenizers that are links out of their folder, as weights may be
    anyway. Memory does not depend on the files' sizes. Raises MismatchError, CheckpointError or OutputError before anything is
    written where that can be told; an exception later removes what was written.
    """
    payload = read_payload(path_raw, path_payload, follow_links)
    checks = XorChecks(payload, expect_md5)
    run = _Run(payload, local_path(path_tuned), checks, progress)
    unfinished = (run.out / JOURNAL_NAME).exists()
    going_on = resume and unfinished
    whole = None if unfinished else run.finished()
    if whole is not None and not resume:
        raise finished_before(run.out)
    if whole is not None:
        checks.inputs(progress)  # `told` says of them, too, that they are as published
        return XorResult(run.out, whole, len(payload.jobs), tuple(checks.told()), finished_before=True)
    if not going_on:
        refuse_busy(run.out)
        check_output(run.out, sum(job.nbytes or job.payload_size for job in payload.jobs))
    checks.heads()
    checks.inputs(progress)
    return run.write(going_on)


class _Run:
    """One result under way in the folder `out`."""

    def __init__(self, payload: Payload, out: Path, checks: XorChecks, progress: bool) -> None:
        self.out, self.checks, self.progress = out, checks, progress
        # in the order of their names' coming: an index last, as it makes a model of them, else weights
        self.jobs = sorted(
            payload.jobs, key=lambda job: (job.name.endswith(".index.json"), job.name.endswith(WEIGHTS), job.name)
        )
        self.sources = Sources([payload])
        self.before: dict[str, list[SourceFile]] = {
            "base": self.sources.records(payload.base_files),
            "payload": self.sources.records(job.payload for job in self.jobs),
        }

    def finished(self) -> Manifest | None:
        """The manifest of a result of these files that lies in the folder finished and as written, or None."""
        if not (self.out / MANIFEST_NAME).is_file():
            return None
        manifest = read_manifest(self.out)
        sources = {role: [replace(file, sha256=None) for file in files] for role, files in manifest.sources.items()}
        names = {job.name for job in self.jobs}
        if (manifest.operation, set(manifest.files), sources) != (XOR, names, self.before):
            return None
        report = verify(self.out)
        if not report.ok:
            raise OutputError(
                errno.ENOTEMPTY,
                f"{self.out} holds a finished result that is not as it was written: {report.problems[0]}",
            )

        def one(job: Job, check: Check) -> None:
            path = self.out / job.name
            digests = digests_of_range(path, 0, stat_of(path).st_size, self.checks.algorithms(job), check=check)
            self.checks.digests(job, path, digests)
            self.checks.whole(job, path, check)

        in_threads(one, self.jobs, THREADS)
        return manifest

    def write(self, resume: bool) -> XorResult:
        """Writes what is not written yet, and gives all files their names."""
        folder = OutputFolder(self.out, resume)
        with ExitStack() as stack:
            stack.callback(folder.discard)  # before anything is made: Ctrl-C may come between any two lines
            if resume:  # it is read and locked before anything is touched
                journal = stack.enter_context(closing(self._journal(resume)))
            folder.make_folder(0)
            with deferred():  # what Ctrl-C found made and not yet tracked would stay
                if not resume:
                    journal = stack.enter_context(closing(self._journal(resume)))
                folder.track(journal.path)
            records = self._take_up(folder, journal.finished) if resume else {}
            resumed = len(records)
            records |= self._write_rest(folder, journal, records)
            self.sources.check()
            manifest = self._manifest(records)
            stack.callback(journal.remove)  # in the end, so that resume knows all until then
            # the name that makes a model of it comes last, with all others on the disk before
            folder.place(MANIFEST_NAME, manifest.encode())
            for job in self.jobs[:-1]:
                folder.rename(job.name)
            folder.sync_names()
            folder.rename(self.jobs[-1].name)
            folder.keep()
        return XorResult(self.out, manifest, resumed, tuple(self.checks.told()))

    def _journal(self, resume: bool) -> Journal[FileRecord]:
        sources = {role: [asdict(file) for file in files] for role, files in self.before.items()}
        run = hashlib.sha256(json.dumps({"operation": XOR, "sources": sources}, sort_keys=True).encode()).hexdigest()
        return Journal(self.out, run, _file_record, resume)

    def _take_up(self, folder: OutputFolder, noted: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        """The files of a killed run whose bytes on disk still hash to what it noted; all are unfinished again."""
        for name in (*(job.name for job in reversed(self.jobs)), MANIFEST_NAME):
            final, partial = self.out / name, self.out / (name + PARTIAL)
            folder.track(final)
            folder.track(partial)
            if final.exists():
                with writing(final, "be renamed"):
                    os.rename(final, partial)

        def is_whole(job: Job, check: Check) -> bool:
            path, record = self.out / (job.name + PARTIAL), noted.get(job.name)
            if record is None or not path.is_file() or stat_of(path).st_size != record.bytes:
                return False
            digests = digests_of_range(path, 0, record.bytes, self.checks.algorithms(job), check=check)
            if digests["sha256"] != record.sha256:
                return False
            self.checks.digests(job, path, digests)
            self.checks.whole(job, path, check)
            return True

        good = in_threads(is_whole, self.jobs, THREADS)
        return {job.name: noted[job.name] for job, is_good in zip(self.jobs, good, strict=True) if is_good}

    def _write_rest(
        self, folder: OutputFolder, journal: Journal[FileRecord], done: Mapping[str, FileRecord]
    ) -> dict[str, FileRecord]:
        left = sorted((job for job in self.jobs if job.name not in done), key=lambda job: job.payload_size)
        total = sum(job.payload_size for job in self.jobs)
        with Progress(total, "B", self.progress, XOR) as bar:
            bar.add(total - sum(job.payload_size for job in left))

            def one(job: Job, check: Check) -> FileRecord:
                record = self._write_one(job, folder, bar.add, check)
                journal.add(job.name, record)
                return record

            records = in_threads(one, left, THREADS)
        return {job.name: record for job, record in zip(left, records, strict=True)}

    def _write_one(self, job: Job, folder: OutputFolder, progress: Callable[[int], None], check: Check) -> FileRecord:
        hashes = {name: hashlib.new(name, usedforsecurity=False) for name in self.checks.algorithms(job)}
        position = 0
        with closing(folder.open_file(job.name, job.nbytes or 0)) as file:
            with closing(decoded(job, progress=progress)) as pieces:
                for view in pieces:
                    check()
                    if job.packed:
                        self._check_room(job)
                    for digest in hashes.values():
                        digest.update(view)
                    file.write_at(position, view)
                    position += len(view)
            digests = {name: digest.hexdigest() for name, digest in hashes.items()}
            self.checks.digests(job, file.path, digests)
            file.sync()
        self.checks.whole(job, file.path, check)
        # a source that somebody changes shows at once and not in the morning
        self.sources.check({job.payload, job.base or job.payload})
        return FileRecord(position, digests["sha256"])

    def _check_room(self, job: Job) -> None:
        """What gzip data unpack to is not known before: they must not fill the disk."""
        with writing(self.out, "be measured"):
            stat = os.statvfs(self.out)
        free = stat.f_bavail * stat.f_frsize
        if free < SPARE:
            raise OutputError(
                errno.ENOSPC,
                f"{self.out / job.name}: while {job.payload} was unpacked the disk came to {free >> 20} MiB, wanted at least "
                f"{SPARE >> 20} at any time",
            )

    def _manifest(self, records: Mapping[str, FileRecord]) -> Manifest:
        return Manifest(
            operation=XOR,
            backend="numpy",
            versions={"baize_engine": __version__, "python": platform.python_version(), "numpy": numpy.__version__},
            sources=self.before,
            tensors={},
            files={job.name: records[job.name].sha256 for job in self.jobs},
            notes=[line for line in self.checks.told() if not line.startswith("warning")],
        )


def _file_record(item: Mapping[str, Any]) -> FileRecord:
    record = FileRecord(item["bytes"], item["sha256"])
    if type(record.bytes) is not int or type(record.sha256) is not str:
        raise TypeError("wanted bytes and SHA-256")
    return record
