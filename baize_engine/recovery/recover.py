"""`recover`: a base and a published diff become a whole model in a new folder. `make_diff` shares the run below."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

from baize_engine import __version__, backend
from baize_engine.checkpoint import config_file, side_files
from baize_engine.checkpoint.base import Base, Index, read_base
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceFile,
    TensorRecord,
    sha256_of,
    source_files,
)
from baize_engine.checkpoint.writer import CheckpointWriter, TensorSpec, check_output, lay_out
from baize_engine.errors import CheckpointError, MismatchError
from baize_engine.recovery.journal import JOURNAL_NAME, Journal, fingerprint
from baize_engine.recovery.norms import norm_ratio
from baize_engine.recovery.plan import Plan, check_configs, plan
from baize_engine.recovery.progress import Progress
from baize_engine.recovery.stream import stream
from baize_engine.recovery.verify import hash_file, hash_range

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
    resumed: int  # tensors that an earlier, killed run had finished

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
    resume: bool = False,
    progress: bool = True,
    *,
    force: bool = False,
    hash_sources: bool = False,
) -> Result:
    """Writes base + diff to `path_tuned` and returns what was made.

    Every element is `float32(base) + float32(diff)`, rounded once to nearest even to `dtype` ("float16", "bfloat16" or
    "float32"); every NaN is the canonical quiet NaN. Vocabulary rows that only the diff has are added to the mean row
    of the base, as the reference script does (weight_diff.py of open-instruct and alpaca). Rotary buffers are left out.
    `path_raw` may hold Meta's original layout; both inputs may be hub ids ("owner/name") where huggingface_hub is installed.

    `device` is "auto", "cpu" or "cuda[:n]". `resume` takes up what a killed run of the same sources and options left in
    `path_tuned`: tensors whose bytes still hash to what that run noted are not redone. `force` goes on where the two
    configs differ or the diff looks like a whole model; shapes must agree all the same. `hash_sources` puts a SHA-256 of
    each source file into the manifest. Peak memory is bounded by the buffers, not by the model. Raises MismatchError,
    CheckpointError, ConfigError or OutputError before anything is written where the files do not fit; an exception later
    removes what was written.
    """
    base, diff = read_base(folder_of(path_raw)), read_index(folder_of(path_diff))

    def check(work: Plan) -> None:
        ratio = norm_ratio(work)
        if ratio >= FULL_MODEL and not force:
            raise MismatchError(
                f"{diff.folder} looks like a whole model, not a weight diff: its norm weights are {ratio:.2f} times as large "
                f"as the base's, wanted below {FULL_MODEL} (--force goes on)"
            )

    options = Options(dtype, device, resume, progress, force, hash_sources)
    return combine(base, diff, Path(path_tuned), options, check)


@dataclass(frozen=True)
class Options:
    """What `recover` and `make_diff` have in common; the meaning of each stands at `recover`."""

    dtype: str
    device: str
    resume: bool
    progress: bool
    force: bool
    hash_sources: bool
    subtract: bool = False  # other - base in place of other + base


def combine(source: Base, other: CheckpointIndex, out: Path, options: Options, check: Callable[[Plan], None]) -> Result:
    """Plans, checks, streams and finishes. `check` may refuse the plan."""
    base = source.index
    config = config_file.read_config(other.folder)
    work = plan(base, other, options.dtype)
    if not options.force:
        names = str(source.config_path), str(other.folder / "config.json")
        check_configs(source.config, config_file.normalise(config), *names)
    check(work)
    layout = lay_out(job.spec for job in work.jobs)
    resume = options.resume and (out / JOURNAL_NAME).exists()
    if not resume:
        check_output(out, sum(shard.nbytes for shard in layout))
    files = side_files.collect(other.folder, base.folder, options.dtype, work.vocab_size)
    make_adder = backend.diff_adder(options.device)
    before = {"base": source_files(base.files), "tuned" if options.subtract else "diff": source_files(other.files)}
    run = fingerprint(work, layout, before, options.subtract)
    with ExitStack() as stack:
        # An old journal is read and locked before anything is touched; a new one needs the folder that the writer makes.
        journal = stack.enter_context(closing(Journal(out, run))) if resume else None
        writer = CheckpointWriter(out, layout, resume)
        stack.callback(writer.discard)  # before anything is made: Ctrl-C may come between any two lines
        writer.open()
        writer.track(out / JOURNAL_NAME)
        if journal is None:
            journal = stack.enter_context(closing(Journal(out, run)))
        done = _still_there(journal.finished, writer, work)
        label = "make_diff" if options.subtract else "recover"
        with Progress(work.traffic, label, options.progress) as bar:
            bar.add(sum(job.traffic for job in work.jobs if job.name in done))
            records = stream(
                work, writer, make_adder, subtract=options.subtract, progress=bar.add, done=done, finished=journal.add
            )
        sources = {
            role: _unchanged(before[role], index, options.hash_sources)
            for role, index in zip(before, (base, other), strict=True)
        }
        manifest = Manifest(
            operation=label,
            backend=make_adder().name,
            versions={"baize_engine": __version__, "python": platform.python_version()},
            sources=sources,
            tensors=records,
            files={name: sha256_of(content) for name, content in files.items()},
        )
        writer.finish({**files, MANIFEST_NAME: manifest.encode()})
        journal.path.unlink()
    return Result(out, manifest, work.skipped, work.extra_rows, len(done))


def _still_there(finished: dict[str, TensorRecord], writer: CheckpointWriter, work: Plan) -> dict[str, TensorRecord]:
    """The tensors of an earlier run whose bytes on disk still hash to what it noted."""

    def intact(spec: TensorSpec) -> bool:
        path, begin = writer.partial_path(spec.name)
        return hash_range(path, begin, spec.nbytes) == finished[spec.name].sha256

    specs = [job.spec for job in work.jobs if job.name in finished]
    with ThreadPoolExecutor(2) as pool:
        return {
            spec.name: finished[spec.name] for spec, good in zip(specs, pool.map(intact, specs), strict=True) if good
        }


def _unchanged(before: list[SourceFile], index: Index, with_hash: bool) -> list[SourceFile]:
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
    if result.resumed:
        lines.append(f"{result.resumed} tensor(s) of the interrupted run were whole and were not redone")
    if result.skipped:
        lines.append(f"{len(result.skipped)} rotary buffer(s) left out: they follow from the config")
    for name, record in result.overflowed.items():
        lines.append(
            f"warning: {name}: {record.overflowed} finite value(s) left the range of {record.dtype} and became infinite"
        )
    for name, record in result.nonfinite.items():
        lines.append(f"warning: {name}: {record.nonfinite} value(s) were NaN or infinite before rounding")
    return lines
