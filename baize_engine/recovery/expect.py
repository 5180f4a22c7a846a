"""Is it the right base? What can be told before the long work, while it runs, and of the finished sums.

A diff that `make_diff` wrote carries the hashes of its base's first rows. A user may give the manifest of a result that someone
else recovered, or the sum that the finetune's authors published.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from baize_engine.backend.adders import Adder
from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, TensorRecord, read_manifest
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import MismatchError, RequestError
from baize_engine.recovery.norms import widened
from baize_engine.recovery.plan import WRONG_BASE, Plan, some
from baize_engine.recovery.published_sum import TOLERANCE, buffer_sums, naive_sums
from baize_engine.recovery.stream import stream

SMALL = 1 << 18  # elements: norms are some thousand, the smallest matrix of a 7B is 16 million


@dataclass(frozen=True)
class Expectation:
    """What a result must be. `sum`: published by the authors; `manifest`: of the same result, recovered elsewhere."""

    sum: float | None = None
    manifest: Manifest | None = None
    manifest_path: Path | None = None
    sum_atol: float = TOLERANCE  # by how much the sum may be missed

    @classmethod
    def of(
        cls,
        expect_sum: float | None,
        expect_manifest: str | os.PathLike[str] | None,
        expect_sum_atol: float = TOLERANCE,
    ) -> Expectation:
        """`expect_manifest` is a manifest or a folder that has one. RequestError where no sum could be `expect_sum`."""
        for name, value in (("expect_sum", expect_sum), ("expect_sum_atol", expect_sum_atol)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not (number or (value is None and name == "expect_sum")):
                raise RequestError(f"{name} is {value!r}, wanted a finite number")
        if expect_sum_atol < 0:
            raise RequestError(f"expect_sum_atol is {expect_sum_atol!r}, wanted a number of at least 0")
        if expect_manifest is None:
            return cls(expect_sum, sum_atol=expect_sum_atol)
        path = Path(expect_manifest)
        return cls(expect_sum, read_manifest(path), path, expect_sum_atol)

    def check_before(
        self, work: Plan, base: Index, other: Index, config: Mapping[str, Any], make_adder: Callable[[], Adder]
    ) -> None:
        """Names, shapes, and the values of the small tensors: some MB are read, nothing is written."""
        if self.sum is not None:
            buffer_sums(base, other, config, _names(work))
        if self.manifest is None:
            return
        wanted = self.manifest.tensors
        problems = [
            f"{name} is in only one of the result and the manifest" for name in wanted.keys() ^ set(_names(work))
        ]
        for job in work.jobs:
            if job.name in wanted and wanted[job.name].shape != job.other.shape:
                problems.append(f"{job.name} has shape {list(job.other.shape)}, wanted {list(wanted[job.name].shape)}")
        if problems:
            raise MismatchError(f"the result is not that of {self.manifest_path}: " + some(sorted(problems)))
        small = tuple(job for job in work.jobs if job.other.numel <= SMALL)
        records = stream(replace(work, jobs=small), _Nowhere(), make_adder, workers=1, piece=SMALL)
        differing = [name for name, record in records.items() if not _same(record, wanted[name])]
        if differing:
            raise MismatchError(
                f"{len(differing)} of {len(small)} small tensors do not come out as {self.manifest_path} says: "
                f"{some(differing)}; {WRONG_BASE}"
            )

    def check_tensor(self, name: str, record: TensorRecord) -> None:
        """A finished tensor against the manifest."""
        if self.manifest is not None and not _same(record, self.manifest.tensors[name]):
            wanted = self.manifest.tensors[name]
            raise MismatchError(
                f"{name} came out with sum {record.sum} and SHA-256 {record.sha256[:16]}…, {self.manifest_path} says "
                f"{wanted.sum} and {wanted.sha256[:16]}…: {WRONG_BASE}"
            )

    def check_after(
        self, records: Mapping[str, TensorRecord], base: Index, other: Index, config: Mapping[str, Any]
    ) -> list[str]:
        """The sum, with or without rotary buffers; returns what to tell of the checks that were passed."""
        told = []
        if self.manifest is not None:
            told.append(f"every tensor is as {self.manifest_path} says")
        if self.sum is not None:
            sums = naive_sums(records, buffer_sums(base, other, config, records))
            met = next((found for found in sums if found.meets(self.sum, self.sum_atol)), None)
            if met is None:
                raise MismatchError(
                    f"the sum of all weights is {' or '.join(map(str, sums))}, wanted {self.sum} within {self.sum_atol}: "
                    f"{WRONG_BASE} (--expect_sum_atol allows for more; without --expect_sum the result is kept)"
                )
            told.append(f"the expected sum {self.sum} is met within {self.sum_atol}: {met}")
        return told


def base_rows(work: Plan) -> dict[str, str]:
    """SHA-256 of the first row of each of the base's tensors, widened to float32: some MB of any model."""
    digests = {}
    for job in work.added:
        digest = hashlib.sha256()
        for block in widened(job.base, job.row if len(job.base.shape) > 1 else job.base.numel):
            digest.update(block)
        digests[job.name] = digest.hexdigest()
    return digests


def check_carried(work: Plan, base: Index, diff: Index) -> None:
    """MismatchError where the diff's own manifest was made with a base whose first rows differ. Others carry nothing."""
    if not is_file(diff.folder / MANIFEST_NAME):
        return
    carried = read_manifest(diff.folder).base_rows
    if not carried:
        return
    found = base_rows(work)
    differing = [name for name in found if carried.get(name, found[name]) != found[name]]
    if differing:
        raise MismatchError(
            f"{diff.folder} was made from another base than {base.folder}: {len(differing)} of {len(found)} tensors differ "
            f"in their first row: {some(differing)} (--force goes on)"
        )


class _Nowhere:
    """A sink for what is only to be hashed."""

    def write(self, name: str, offset: int, view: memoryview) -> None: ...


def _same(record: TensorRecord, wanted: TensorRecord) -> bool:
    """Equal bits; of another type, equal sums before rounding, which are the same on every machine."""
    if record.dtype == wanted.dtype:
        return record.sha256 == wanted.sha256
    return (record.sum, record.nonfinite) == (wanted.sum, wanted.nonfinite)


def _names(work: Plan) -> list[str]:
    return [job.name for job in work.jobs]
