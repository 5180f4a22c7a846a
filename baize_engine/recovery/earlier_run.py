"""What an earlier run left in an output: a result that is finished, or the tensors that a killed one had written."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from baize_engine.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceFile,
    TensorRecord,
    read_manifest,
    sha256_of,
)
from baize_engine.checkpoint.writer import CheckpointWriter, TensorSpec
from baize_engine.errors import CheckpointError, OutputError
from baize_engine.interrupts import Check, in_threads
from baize_engine.recovery.plan import Plan
from baize_engine.recovery.verify import THREADS, hash_range, verify


def finished_result(
    out: Path, work: Plan, before: dict[str, list[SourceFile]], files: Mapping[str, bytes], operation: str
) -> Manifest | None:
    """The manifest of a result of these sources and options that lies in `out` finished and as written, or None.

    Of several results of one run that was killed at its very end, some are finished.
    """
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(out)
    except CheckpointError:
        return None  # not one of ours: the folder is in use for something else
    found = {name: (record.dtype, record.shape) for name, record in manifest.tensors.items()}
    sources = {role: [replace(file, sha256=None) for file in files] for role, files in manifest.sources.items()}
    wanted = {job.name: (job.dtype, job.other.shape) for job in work.jobs}
    if (manifest.operation, found, sources) != (operation, wanted, before):
        return None
    if (manifest.new_rows, manifest.stored) != (work.new_rows, list(work.stored)):
        return None
    if manifest.files != {name: sha256_of(content) for name, content in files.items()}:
        return None
    try:
        problems = verify(out).problems
    except CheckpointError as error:
        problems = (str(error),)
    if problems:
        raise OutputError(
            errno.ENOTEMPTY, f"{out} holds a finished result that is not as it was written: {problems[0]}"
        )
    return manifest


def still_there(finished: dict[str, TensorRecord], writer: CheckpointWriter, work: Plan) -> dict[str, TensorRecord]:
    """The tensors of an earlier run whose bytes on disk still hash to what it noted."""

    def intact(spec: TensorSpec, check: Check) -> bool:
        path, begin = writer.partial_path(spec.name)
        return hash_range(path, begin, spec.nbytes, check=check) == finished[spec.name].sha256

    specs = [job.spec for job in work.jobs if job.name in finished]
    good = in_threads(intact, specs, THREADS)
    return {spec.name: finished[spec.name] for spec, is_good in zip(specs, good, strict=True) if is_good}
