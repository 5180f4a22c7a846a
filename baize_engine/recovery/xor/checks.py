"""Checks that base and payload belong together: heads of files, published sums, and the forms of the results."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from baize_engine.checkpoint.hub import local_path
from baize_engine.checkpoint.os_errors import reading, stat_of
from baize_engine.errors import MismatchError
from baize_engine.interrupts import Check, in_threads
from baize_engine.printable import shown
from baize_engine.progress import Progress
from baize_engine.recovery.hashing import digests as digests_of
from baize_engine.recovery.xor.checksum_lists import Sums, algorithm, read_sums
from baize_engine.recovery.xor.decode import decoded
from baize_engine.recovery.xor.file_types import HEAD, check_head, check_whole
from baize_engine.recovery.xor.job import WRONG_BASE, WRONG_KEY, XorJob
from baize_engine.recovery.xor.payload import Payload

THREADS = 2  # files at a time


class XorChecks:
    """The checks of one result. Each raises MismatchError.

    `expect_md5`: a text with published sums, or None.
    """

    def __init__(self, payload: Payload, expect_md5: str | os.PathLike[str] | None) -> None:
        self.payload = payload
        self._results = {job.name for job in payload.jobs}
        self._sums = Sums(Path(), {}) if expect_md5 is None else read_sums(local_path(expect_md5))
        if self._sums.found and not self._results & self._sums.found.keys():
            raise MismatchError(
                f"{expect_md5} names none of the files of the result, such as {shown(min(self._results))}: wanted the list of "
                "this finetune"
            )
        self._inputs = self._known_inputs()
        self._fit: set[str] = set()  # files of the result whose own CRC-32 is right

    def _known_inputs(self) -> dict[Path, str]:
        """The files that are read and whose sum is published, with that sum.

        With a key these are it and the payload's; else the base's, even those that the payload does not need.
        """
        if self.payload.keyed:
            paths = [self.payload.base, *(job.payload for job in self.payload.jobs)]
        else:
            with reading(self.payload.base):
                paths = [path for path in sorted(self.payload.base.iterdir()) if path.is_file()]
        wanted = ((path, self._sums.of_input(path.name, self._results)) for path in paths)
        return {path: digest for path, digest in wanted if digest is not None}

    def check_heads(self) -> None:
        """Checks the first bytes of every file of the result, before anything is written."""
        for job in self.payload.jobs:
            with closing(decoded(job, HEAD)) as pieces:
                check_head(job, bytes(next(pieces, b"")))

    def check_inputs(self, progress: bool) -> None:
        """Compares files that are read with their published sums."""
        sizes = {path: stat_of(path).st_size for path in self._inputs}
        payloads = {job.payload for job in self.payload.jobs}

        def check_input(path: Path, check: Check) -> None:
            wanted = self._inputs[path]
            digests = digests_of(path, 0, sizes[path], check, bar.add, {algorithm(wanted)})
            why = "download it again" if path in payloads else WRONG_KEY if self.payload.keyed else WRONG_BASE
            self._sums.check(path, wanted, digests, why)

        with Progress(sum(sizes.values()), "B", progress, "check") as bar:
            in_threads(check_input, sorted(sizes, key=lambda path: sizes[path]), THREADS)

    def algorithms(self, job: XorJob) -> set[str]:
        """The digests that a file of the result needs: SHA-256, which the manifest has, and what was published."""
        wanted = self._sums.of_result(job.name)
        return {"sha256", algorithm(wanted)} if wanted else {"sha256"}

    def check_digests(self, job: XorJob, path: Path, digests: dict[str, str]) -> None:
        """Compares a file of the result with the sums that the payload or its authors state; `digests` by `algorithms`."""
        if job.sha256 not in (None, digests["sha256"]):
            raise job.mismatch(f"has the SHA-256 {digests['sha256']}, not the {job.sha256} of its header")
        if wanted := self._sums.of_result(job.name):
            self._sums.check(path, wanted, digests, job.suspect)

    def check_form(self, job: XorJob, path: Path, check: Check) -> None:
        """Checks the form of a file of the result; where no sum was published, its own CRC-32, too.

        `check` is called before each block that is read.
        """
        if check_whole(job, path, job.sha256 is None and job.name not in self._sums.found, check):
            self._fit.add(job.name)

    def check_file(self, job: XorJob, path: Path, check: Check, noted: str | None = None) -> bool:
        """Reads a whole file of the result and makes all checks of it, unless its SHA-256 is not the one `noted`."""
        digests = digests_of(path, 0, stat_of(path).st_size, check, algorithms=self.algorithms(job))
        if noted not in (None, digests["sha256"]):
            return False
        self.check_digests(job, path, digests)
        self.check_form(job, path, check)
        return True

    def report(self) -> list[str]:
        """What was compared with what, and what was not, a line each."""
        lines, count = [], len(self.payload.jobs)
        with_header = sum(job.sha256 is not None for job in self.payload.jobs)
        unknown = [
            job for job in self.payload.jobs if job.sha256 is None and job.name not in {*self._sums.found, *self._fit}
        ]
        if with_header:
            lines.append(f"{with_header} file(s) have the SHA-256 that the payload says")
        if self._sums.found:
            known = sum(name in self._sums.found for name in self._results)
            lines.append(
                f"{known} of {count} file(s) of the result, and {len(self._inputs)} of those they were made of, are as "
                f"{self._sums.path.name} says"
            )
        if self._fit:
            lines.append(f"{len(self._fit)} file(s) have the CRC-32 that torch.save wrote into them")
        if unknown:
            lines.append(
                f"warning: {len(unknown)} file(s), such as {unknown[0].name}, could not be compared with what was published: "
                "--expect_md5 FILE takes the list in the model's card"
            )
        if self.payload.left_out:
            lines.append(f"left out, as no part of the payload: {', '.join(map(shown, self.payload.left_out[:8]))}")
        return lines
