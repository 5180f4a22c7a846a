"""The run that `recover` and `make_diff` share: every result planned and checked, then one pass over the base for all.

Nothing is written before every result has passed its checks. Each has its own folder, writer, journal and manifest.
"""

from __future__ import annotations

import errno
import platform
import warnings
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from baize_engine import __version__
from baize_engine.backend import choose
from baize_engine.backend.adders import Adder
from baize_engine.checkpoint import config_file, side_files
from baize_engine.checkpoint.base import Base, Index
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceFile,
    TensorRecord,
    sha256_of,
    tensor_record,
)
from baize_engine.checkpoint.output_folder import PARTIAL, check_output, check_room, finished_before
from baize_engine.checkpoint.result_check import result_problems
from baize_engine.checkpoint.writer import CheckpointWriter, ShardLayout, lay_out
from baize_engine.errors import BaizeWarning, MismatchError, OutputError
from baize_engine.interrupts import deferred, in_threads
from baize_engine.progress import Progress
from baize_engine.recovery.config_match import check_configs
from baize_engine.recovery.earlier_run import finished_result, still_there
from baize_engine.recovery.expect import Expectation, base_rows
from baize_engine.recovery.journal import JOURNAL_NAME, Journal, fingerprint, refuse_busy
from baize_engine.recovery.new_rows import decide
from baize_engine.recovery.plan import DIFF, MatchOptions, Plan, plan
from baize_engine.recovery.result import Result
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.stream import MEMORY_MIB, Output, fit, groups_of, stream_all, traffic
from baize_engine.recovery.verify import THREADS, hash_file
from baize_engine.recovery.vocabulary_growth import mean_row


@dataclass(frozen=True)
class Options:
    """What `recover` and `make_diff` have in common; the meaning of each stands at `recover`."""

    dtype: str
    device: str
    resume: bool
    progress: bool
    hash_sources: bool
    memory_mib: int = MEMORY_MIB
    match: MatchOptions = field(default_factory=MatchOptions)
    follow_links: bool = False
    subtract: bool = False  # other - base in place of other + base

    @property
    def operation(self) -> str:
        return "make_diff" if self.subtract else "recover"

    @property
    def role(self) -> str:
        """What the other side is called in the manifest."""
        return "tuned" if self.subtract else "diff"


@dataclass(frozen=True)
class Wish:
    """One result that is wanted: from which diff or tuned model, where, what may refuse its plan, and what it must be."""

    other: CheckpointIndex
    out: Path
    check: Callable[[Plan], None]
    expect: Expectation = field(default_factory=Expectation)


@dataclass(frozen=True)
class _Prepared:
    """A wish that passed every check. `whole`: an earlier run finished it already."""

    wish: Wish
    work: Plan
    layout: tuple[ShardLayout, ...]
    files: dict[str, bytes]
    sources: Sources
    before: dict[str, list[SourceFile]]
    run: str
    resume: bool
    whole: Manifest | None

    @property
    def out(self) -> Path:
        return self.wish.out


def combine(source: Base, wishes: Sequence[Wish], options: Options) -> list[Result]:
    """Plans and checks every wish, then streams them all in one pass over the base and finishes each."""
    workers, piece = fit(options.memory_mib)
    sources = Sources([source.index, *(wish.other for wish in wishes)])
    base_mean = cache(mean_row)  # for all diffs of this run
    prepared = [_prepare(source, wish, options, sources, base_mean) for wish in wishes]
    _check_outputs(prepared)
    make_adder = choose.diff_adder(options.device)
    if not options.subtract:
        for item in prepared:
            _warn(item)
    for item in prepared:
        item.wish.expect.check_before(item.work, source.index, item.wish.other, source.config, make_adder)
    pending = [item for item in prepared if item.whole is None]
    made = iter(_run(source, pending, options, make_adder, workers, piece) if pending else [])
    return [
        next(made)
        if item.whole is None
        else replace(
            _result(item, item.whole, len(item.work.jobs), _expected(source, item, item.whole.tensors)),
            finished_before=True,
        )
        for item in prepared
    ]


def _warn(item: _Prepared) -> None:
    """Before the long work: what the result will not do."""
    work = item.work
    for reason in result_problems(item.files, work.vocab_size, work.layers, work.stored, item.out):
        warnings.warn(reason, BaizeWarning, stacklevel=4)  # of the caller of `recover`


def _result(item: _Prepared, manifest: Manifest, resumed: int, checked: list[str]) -> Result:
    return Result(item.out, manifest, item.work.skipped, item.work.extra_rows, resumed, tuple(checked))


def _expected(source: Base, item: _Prepared, records: dict[str, TensorRecord]) -> list[str]:
    """Holds a finished result against what is expected of it."""
    expect = item.wish.expect
    for name, record in records.items():
        expect.check_tensor(name, record)
    try:
        return expect.check_after(records, source.index, item.wish.other, source.config)
    except MismatchError as error:
        raise MismatchError(f"{item.out}: {error}") from None


def _prepare(
    source: Base, wish: Wish, options: Options, sources: Sources, base_mean: Callable[[Entry], array[float]]
) -> _Prepared:
    base, other, out = source.index, wish.other, wish.out
    work = checked_plan(source, other, options.dtype, options.match, wish.check, options.subtract, base_mean)
    layout = lay_out(job.spec for job in work.jobs)
    before = {"base": sources.records(base.files), options.role: sources.records(other.files)}
    files = side_files.collect(other.folder, base.folder, options.dtype, work.vocab_size, options.follow_links)
    unfinished = (out / JOURNAL_NAME).exists()
    resume = options.resume and unfinished
    whole = None if unfinished else finished_result(out, work, before, files, options.operation)
    if whole is not None and not options.resume:
        raise finished_before(out)
    if not resume and whole is None:
        refuse_busy(out)
        if (out / MANIFEST_NAME).exists() and not unfinished:
            raise OutputError(
                errno.ENOTEMPTY,
                f"{out} is not empty: it holds a finished result of other sources, options, or files beside the weights: name "
                "another folder, or remove it",
            )
        check_output(out, sum(shard.nbytes for shard in layout))
    files = side_files.collect(other.folder, base.folder, options.dtype, work.vocab_size, options.follow_links)
    run = fingerprint(work, layout, before, options.subtract)
    return _Prepared(wish, work, layout, files, sources, before, run, resume, whole)


def checked_plan(
    source: Base,
    other: CheckpointIndex,
    dtype: str,
    match: MatchOptions,
    check: Callable[[Plan], None],
    subtract: bool = False,
    mean_row: Callable[[Entry], array[float]] = mean_row,
) -> Plan:
    """The plan of base and other, once names, shapes, configs and `check` agree and what new rows are is decided."""
    config = config_file.read_normalised(other.folder)
    role = "tuned model" if subtract else DIFF
    work = plan(source.index, other, dtype, match, tied=config["tie_word_embeddings"], role=role)
    if not match.force:
        names = str(source.config_path), str(other.folder / "config.json")
        check_configs(source.config, config, *names, match.keep_extra)
    check(work)
    return decide(work, other, match, subtract, mean_row)


def _check_outputs(prepared: Sequence[_Prepared]) -> None:
    """Together: no folder twice, and room on the disks for all."""
    seen: dict[Path, Path] = {}
    for item in prepared:
        if seen.setdefault(item.out.resolve(), item.out) is not item.out:
            raise OutputError(errno.EEXIST, f"{item.out} is named for two results, wanted a folder for each")
    check_room(
        (item.out, sum(shard.nbytes for shard in item.layout) + sum(map(len, item.files.values())))
        for item in prepared
        if item.whole is None and not item.resume
    )


@dataclass(frozen=True)
class _Open:
    """A result under way."""

    item: _Prepared
    writer: CheckpointWriter
    journal: Journal[TensorRecord]
    done: dict[str, TensorRecord]
    pairs: Mapping[str, tuple[Entry, Entry]]

    @property
    def output(self) -> Output:
        return Output(self.item.work, self.writer, self.done, self._finished)

    def _finished(self, name: str, record: TensorRecord) -> None:
        # a wrong base, or a source that somebody changes, shows at once and not in the morning
        self.item.wish.expect.check_tensor(name, record)
        self.item.sources.check({part.path for entry in self.pairs[name] for part in entry.parts})
        self.journal.add(name, record)


def _run(
    source: Base,
    pending: Sequence[_Prepared],
    options: Options,
    make_adder: Callable[[], Adder],
    workers: int,
    piece: int,
) -> list[Result]:
    with ExitStack() as stack:
        # Old journals are read and locked before anything is touched; a new one needs the folder that its writer makes.
        journals = [
            stack.enter_context(closing(Journal(item.out, item.run, tensor_record, resume=True)))
            if item.resume
            else None
            for item in pending
        ]
        opened = [_open(item, journal, stack) for item, journal in zip(pending, journals, strict=True)]
        outputs = [each.output for each in opened]
        every, left = groups_of(outputs, all_jobs=True), groups_of(outputs)
        with Progress(traffic(every), "B", options.progress, options.operation) as bar:
            bar.add(traffic(every) - traffic(left))
            records = stream_all(
                outputs, make_adder, subtract=options.subtract, workers=workers, piece=piece, progress=bar.add
            )
        checked = [_expected(source, each.item, found) for each, found in zip(opened, records, strict=True)]
        base_files = _sources(pending[0].before["base"], source.index, options.hash_sources)
        sources = [
            {
                "base": base_files,
                options.role: _sources(each.item.before[options.role], each.item.wish.other, options.hash_sources),
            }
            for each in opened
        ]
        pending[0].sources.check()
        name = make_adder().name
        manifests = [
            _manifest(each, options, name, files, tensors)
            for each, files, tensors in zip(opened, sources, records, strict=True)
        ]
        for each, manifest in zip(opened, manifests, strict=True):
            stack.callback(each.journal.remove)  # in the end, so that resume knows all until then
            each.writer.finish({**each.item.files, MANIFEST_NAME: manifest.encode()})
    return [
        _result(each.item, manifest, len(each.done), told)
        for each, manifest, told in zip(opened, manifests, checked, strict=True)
    ]


def _open(item: _Prepared, journal: Journal[TensorRecord] | None, stack: ExitStack) -> _Open:
    writer = CheckpointWriter(item.out, item.layout, item.resume)
    stack.callback(writer.discard)  # before anything is made: Ctrl-C may come between any two lines
    writer.make_folder(writer.nbytes)
    with deferred():  # what Ctrl-C found made and not yet tracked would stay
        if journal is None:
            # before the shards: it decides which of two recoveries has the folder, and resume looks for it
            journal = stack.enter_context(closing(Journal(item.out, item.run, tensor_record, resume=False)))
        writer.track(journal.path)
    if item.resume:  # what a run that was killed in `finish` has named already
        for name in (*item.files, MANIFEST_NAME):
            writer.track(item.out / name)
            writer.track(item.out / (name + PARTIAL))
    writer.open_shards()
    pairs = {job.name: (job.base, job.other) for job in item.work.jobs}
    return _Open(item, writer, journal, still_there(journal.finished, writer, item.work), pairs)


def _manifest(
    each: _Open, options: Options, name: str, sources: dict[str, list[SourceFile]], records: dict[str, TensorRecord]
) -> Manifest:
    return Manifest(
        operation=options.operation,
        backend=name,
        versions={"baize_engine": __version__, "python": platform.python_version()},
        sources=sources,
        tensors=records,
        files={file: sha256_of(content) for file, content in each.item.files.items()},
        base_rows=base_rows(each.item.work) if options.subtract else {},
        new_rows=each.item.work.new_rows,
        stored=list(each.item.work.stored),
        notes=list(each.item.work.notes),
    )


def _sources(before: list[SourceFile], index: Index, with_hash: bool) -> list[SourceFile]:
    """The sources as they were before the run, for the manifest."""
    if not with_hash:
        return before
    digests = in_threads(hash_file, index.files, THREADS)
    return [replace(file, sha256=digest) for file, digest in zip(before, digests, strict=True)]
