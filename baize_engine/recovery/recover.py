"""`recover`: a base and a published diff become a whole model in a new folder. `make_diff` shares the run below."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from baize_engine import __version__, backend
from baize_engine.checkpoint import config_file, side_files
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceFile,
    TensorRecord,
    sha256_of,
    source_files,
)
from baize_engine.checkpoint.writer import CheckpointWriter, check_output, lay_out
from baize_engine.errors import CheckpointError, MismatchError
from baize_engine.recovery.norms import norm_ratio
from baize_engine.recovery.plan import Plan, check_configs, plan
from baize_engine.recovery.progress import Progress
from baize_engine.recovery.stream import stream
from baize_engine.recovery.verify import hash_file

FULL_MODEL = (
    0.5  # mean |norm weight| over the base's: about 1 for a model, below 0.1 for every published diff we know of
)


@dataclass(frozen=True)
class Result:
    """What a run made: the folder, its manifest, and what a user should hear of."""

    folder: Path
    manifest: Manifest
    skipped: tuple[str, ...]
    extra_rows: int

    @property
    def overflowed(self) -> dict[str, TensorRecord]:
        """Tensors with finite values that the result's dtype could only hold as infinity."""
        return {name: record for name, record in self.manifest.tensors.items() if record.overflowed}

    @property
    def nonfinite(self) -> dict[str, TensorRecord]:
        """Tensors with sums that were NaN or infinite already in float32."""
        return {name: record for name, record in self.manifest.tensors.items() if record.nonfinite}


def recover(
    path_raw: str | os.PathLike[str],
    path_diff: str | os.PathLike[str],
    path_tuned: str | os.PathLike[str],
    dtype: str = "float16",
    device: str = "auto",
    progress: bool = True,
    *,
    force: bool = False,
    hash_sources: bool = False,
) -> Result:
    """Writes base + diff to `path_tuned` and returns what was made.

    Every element is `float32(base) + float32(diff)`, rounded once to nearest even to `dtype` ("float16", "bfloat16" or
    "float32"); every NaN is the canonical quiet NaN. Vocabulary rows that only the diff has are added to the mean row
    of the base, as the reference script does (weight_diff.py of open-instruct and alpaca). Rotary buffers are left out.

    `device` is "auto", "cpu" or "cuda[:n]". `force` goes on where the two configs differ or the diff looks like a whole
    model; shapes must agree all the same. `hash_sources` puts a SHA-256 of each source file into the manifest.
    Peak memory is bounded by the buffers, not by the model. Raises MismatchError, CheckpointError, ConfigError or
    OutputError before anything is written where the files do not fit; an exception later removes what was written.
    """
    base, diff = read_index(path_raw), read_index(path_diff)

    def check(work: Plan) -> None:
        ratio = norm_ratio(work)
        if ratio >= FULL_MODEL and not force:
            raise MismatchError(
                f"{diff.folder} looks like a whole model, not a weight diff: its norm weights are {ratio:.2f} times as large "
                f"as the base's, wanted below {FULL_MODEL} (--force goes on)"
            )

    return combine(base, diff, Path(path_tuned), dtype, device, progress, False, force, hash_sources, check)


def combine(
    base: CheckpointIndex,
    other: CheckpointIndex,
    out: Path,
    dtype: str,
    device: str,
    progress: bool,
    subtract: bool,
    force: bool,
    hash_sources: bool,
    check: Callable[[Plan], None],
) -> Result:
    """Plans, checks, streams and finishes: other + base, or other - base with `subtract`. `check` may refuse the plan."""
    configs = [config_file.read_config(index.folder) for index in (base, other)]
    work = plan(base, other, dtype)
    if not force:
        _check_configs(configs, base, other)
    check(work)
    layout = lay_out(job.spec for job in work.jobs)
    check_output(out, sum(shard.nbytes for shard in layout))
    files = side_files.collect(other.folder, base.folder, dtype, work.vocab_size)
    make_adder = backend.diff_adder(device)
    before = {"base": source_files(base.files), "other": source_files(other.files)}
    with CheckpointWriter(out, layout) as writer:
        with Progress(work.traffic, "make_diff" if subtract else "recover", progress) as bar:
            records = stream(work, writer, make_adder, subtract=subtract, progress=bar.add)
        sources = {
            role: _unchanged(before[role], index, hash_sources) for role, index in (("base", base), ("other", other))
        }
        manifest = Manifest(
            operation="make_diff" if subtract else "recover",
            backend=make_adder().name,
            versions={"baize_engine": __version__, "python": platform.python_version()},
            sources={"base": sources["base"], "tuned" if subtract else "diff": sources["other"]},
            tensors=records,
            files={name: sha256_of(content) for name, content in files.items()},
        )
        writer.finish({**files, MANIFEST_NAME: manifest.encode()})
    return Result(out, manifest, work.skipped, work.extra_rows)


def _check_configs(configs: list[dict[str, Any]], base: CheckpointIndex, other: CheckpointIndex) -> None:
    normalised: list[Mapping[str, Any]] = [config_file.normalise(config) for config in configs]
    check_configs(*normalised, str(base.folder / "config.json"), str(other.folder / "config.json"))


def _unchanged(before: list[SourceFile], index: CheckpointIndex, with_hash: bool) -> list[SourceFile]:
    """The sources as they were before the run; CheckpointError if one has changed since."""
    for old, new, path in zip(before, source_files(index.files), index.files, strict=True):
        if old != new:
            raise CheckpointError(f"{path} changed while it was read ({old.bytes} bytes before, {new.bytes} now)")
    if not with_hash:
        return before
    with ThreadPoolExecutor(2) as pool:
        return [
            replace(file, sha256=digest) for file, digest in zip(before, pool.map(hash_file, index.files), strict=True)
        ]


def describe(result: Result) -> list[str]:
    """What to tell the user after a run, a line each."""
    manifest = result.manifest
    total = manifest.sum
    lines = [
        f"{len(manifest.tensors)} tensors in {result.folder}, sum of all weights "
        + ("not finite" if isnan(total) else f"{total:.6f}")
        + f", computed by {manifest.backend}"
    ]
    if result.extra_rows:
        lines.append(f"{result.extra_rows} vocabulary row(s) not in the base met the mean row of the base")
    if result.skipped:
        lines.append(f"{len(result.skipped)} rotary buffer(s) left out: they follow from the config")
    for name, record in result.overflowed.items():
        lines.append(
            f"warning: {name}: {record.overflowed} finite value(s) left the range of {record.dtype} and became infinite"
        )
    for name, record in result.nonfinite.items():
        lines.append(f"warning: {name}: {record.nonfinite} value(s) were NaN or infinite before rounding")
    return lines
