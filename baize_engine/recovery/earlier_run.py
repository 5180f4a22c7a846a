"""What an earlier run left in an output folder: a finished result, or tensors that a killed run had written."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, TensorRecord, read_manifest, sha256_of
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.errors import CheckpointError, OutputError
from baize_engine.interrupts import Check, in_threads
from baize_engine.recovery.hashing import THREADS, hash_range
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Plan
from baize_engine.recovery.verify import verify


def finished_result(
    folder: Path,
    work: Plan,
    options: RecoveryOptions,
    sources: Mapping[str, list[SourceFile]],
    side_files: Mapping[str, bytes],
) -> Manifest | None:
    """The manifest in `folder` if it holds a finished result of just this plan, these sources and files beside, else None.

    Of several results of one run that was killed at its very end, some are finished. OutputError where such a result is not as
    it was written.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return None  # not one of ours: the folder is in use for something else
    tensors = {name: (record.dtype, record.shape) for name, record in manifest.tensors.items()}
    same = (
        manifest.operation == options.operation
        and tensors == {job.name: (job.dtype, job.other.shape) for job in work.jobs}
        and without_hashes(manifest.sources) == sources
        and (manifest.new_rows, manifest.stored) == (work.new_rows, list(work.stored))
        and manifest.files == {name: sha256_of(content) for name, content in side_files.items()}
    )
    if not same:
        return None
    check_as_written(folder)
    return manifest


def without_hashes(sources: Mapping[str, list[SourceFile]]) -> dict[str, list[SourceFile]]:
    """A manifest's sources as `Sources.records` gives them."""
    return {role: [replace(file, sha256=None) for file in files] for role, files in sources.items()}


def check_as_written(folder: Path) -> None:
    """OutputError unless `verify` finds the result in `folder` as it was written."""
    try:
        problems = verify(folder).problems
    except CheckpointError as error:
        problems = (str(error),)
    if problems:
        raise OutputError(
            errno.ENOTEMPTY, f"{folder} holds a finished result that is not as it was written: {problems[0]}"
        )


def intact_tensors(noted: Mapping[str, TensorRecord], writer: CheckpointWriter, work: Plan) -> dict[str, TensorRecord]:
    """The tensors of a killed run whose bytes on disk still hash to what its journal noted."""

    def record_of(name: str, check: Check) -> tuple[str, TensorRecord] | None:
        path, begin = writer.partial_path(name)
        intact = hash_range(path, begin, nbytes[name], check=check) == noted[name].sha256
        return (name, noted[name]) if intact else None

    nbytes = {job.name: job.spec.nbytes for job in work.jobs if job.name in noted}
    return dict(filter(None, in_threads(record_of, nbytes, THREADS)))
