"""What a user expects of a result: the manifest of the same result recovered elsewhere, or the sum that its authors published.

Both show a wrong base. They are compared as early as possible: before the long work, with each tensor, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from baize_engine.backend.adders import Adder
from baize_engine.checkpoint.base import Base, Index
from baize_engine.checkpoint.manifest import Manifest, TensorRecord, read_manifest
from baize_engine.errors import MismatchError, RequestError
from baize_engine.recovery.plan import WRONG_BASE, Plan, some
from baize_engine.recovery.published_sum import TOLERANCE, buffer_sums, naive_sums
from baize_engine.recovery.stream import Target, stream

SMALL = 1 << 18  # elements: norms are some thousand, the smallest matrix of a 7B is 16 million


@dataclass
class Expectation:
    """What a result must be: the published sum of its weights, and the manifest of the same result recovered elsewhere.

    RequestError where a number is not finite, or negative; CheckpointError where the manifest cannot be read.
    """

    sum: float | None = None
    manifest_path: Path | None = None  # of a manifest, or of a folder that has one
    sum_atol: float = TOLERANCE  # how far the sum may be off
    manifest: Manifest | None = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (("expect_sum", self.sum), ("expect_sum_atol", self.sum_atol)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not (number or (value is None and name == "expect_sum")):
                raise RequestError(f"{name} is {value!r}, wanted a finite number")
        if self.sum_atol < 0:
            raise RequestError(f"expect_sum_atol is {self.sum_atol!r}, wanted a number of at least 0")
        self.manifest = None if self.manifest_path is None else read_manifest(self.manifest_path)

    def check_before(self, work: Plan, base: Base, other: Index, make_adder: Callable[[], Adder]) -> None:
        """Compares names, shapes, and the values of the small tensors: some MB are read, nothing is written."""
        if self.sum is not None:
            buffer_sums(base, other, work.names)
        if self.manifest is None:
            return
        wanted = self.manifest.tensors
        problems = [f"{name} is in only one of the result and the manifest" for name in wanted.keys() ^ set(work.names)]
        for job in work.jobs:
            if job.name in wanted and wanted[job.name].shape != job.other.shape:
                problems.append(f"{job.name} has shape {list(job.other.shape)}, wanted {list(wanted[job.name].shape)}")
        if problems:
            raise MismatchError(f"the result is not that of {self.manifest_path}: " + some(sorted(problems)))
        small = Target(replace(work, jobs=tuple(job for job in work.jobs if job.other.numel <= SMALL)))
        stream([small], make_adder, workers=1, piece=SMALL)
        differing = [name for name, record in small.records.items() if not _same(record, wanted[name])]
        if differing:
            raise MismatchError(
                f"{len(differing)} of {len(small.records)} small tensors are not as {self.manifest_path} says: "
                f"{some(differing)}; {WRONG_BASE}"
            )

    def check_tensor(self, name: str, record: TensorRecord) -> None:
        """Compares a finished tensor with the manifest."""
        if self.manifest is not None and not _same(record, self.manifest.tensors[name]):
            wanted = self.manifest.tensors[name]
            raise MismatchError(
                f"{name} has sum {record.sum} and SHA-256 {record.sha256[:16]}…, but {self.manifest_path} says "
                f"{wanted.sum} and {wanted.sha256[:16]}…: {WRONG_BASE}"
            )

    def check_after(self, records: Mapping[str, TensorRecord], base: Base, other: Index) -> list[str]:
        """Compares all tensors with the manifest, and their sum, with or without rotary buffers.

        Returns a line for each expectation that was met.
        """
        for name, record in records.items():
            self.check_tensor(name, record)
        met = [] if self.manifest is None else [f"every tensor is as {self.manifest_path} says"]
        if self.sum is None:
            return met
        sums = naive_sums(records, base, other)
        near = next((found for found in sums if found.distance(self.sum) <= self.sum_atol), None)
        if near is None:
            raise MismatchError(
                f"the sum of all weights is {' or '.join(map(str, sums))}, wanted {self.sum} within {self.sum_atol}: "
                f"{WRONG_BASE} (--expect_sum_atol allows for more; without --expect_sum the result is kept)"
            )
        return [*met, f"the expected sum {self.sum} is met within {self.sum_atol}: {near}"]


def _same(record: TensorRecord, wanted: TensorRecord) -> bool:
    """Equal bits; of another type, equal sums before rounding, which are the same on every machine."""
    if record.dtype == wanted.dtype:
        return record.sha256 == wanted.sha256
    return (record.sum, record.nonfinite) == (wanted.sum, wanted.nonfinite)
