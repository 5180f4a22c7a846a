"""Base + diff straight into a decoder: the jobs of recovery with weights in memory where their files would be.

The one module that knows both recovery and the decoder's weights. The bits are those of recover, then load, then quantise;
memory is the final weights and the buffers, and nothing is written to disk.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from baize_engine.backend import choose
from baize_engine.checkpoint import side_files
from baize_engine.checkpoint.base import Index, read_base
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.fingerprint import fingerprint
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.manifest import RECOVER
from baize_engine.checkpoint.side_files import tokenizer_problems
from baize_engine.checkpoint.vocabulary_files import FAST, MODEL, why_not_fast
from baize_engine.errors import BaizeWarning, CheckpointError, ConfigError
from baize_engine.kernels.quantized import Weight
from baize_engine.kernels.quantized import rows as rows_of
from baize_engine.loaded_model import LoadedModel
from baize_engine.loading import assemble, cache_size, resolved
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.narrowing import warn_overflow
from baize_engine.model.share import Share
from baize_engine.model.slices import padding, part_of, targets
from baize_engine.model.weight_loader import allocate, column_parts
from baize_engine.model.weights import check
from baize_engine.options import EngineOptions
from baize_engine.progress import Progress
from baize_engine.recovery.checks import checked_plan
from baize_engine.recovery.diff_folder import read_diff
from baize_engine.recovery.memory import WORKERS
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Plan
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.stream import Target, stream, traffic
from baize_engine.speculate import draft_of
from baize_engine.team import Team, on_all_ranks
from baize_engine.text import special_ids
from baize_engine.text.chat_formats import check_asked
from baize_engine.text.choose import tokenizer_in

# Workers where the CPU quantises: that takes most of the time, and temporary memory for each worker.
QUANTISING = 2


def load_diff(
    path_raw: str | os.PathLike[str],
    path_diff: str | os.PathLike[str],
    options: EngineOptions,
    recovery: RecoveryOptions,
) -> LoadedModel:
    """Recovers base + diff into memory; `Engine.from_diff` says what is refused.

    dtype, not "auto", and device of the sums are those of `options`, whatever `recovery` says.
    """
    return on_all_ranks(load_pair, options, path_raw, path_diff, recovery)


def load_pair(
    team: Team,
    options: EngineOptions,
    path_raw: str | os.PathLike[str],
    path_diff: str | os.PathLike[str],
    recovery: RecoveryOptions,
) -> LoadedModel:
    """`load_diff`, of this rank's part of the model."""
    with team.checking():
        options = resolved(options)
        found = CheckedDiff.read(path_raw, path_diff, options, recovery)
        config, diff, files = found.config, found.diff, found.files
        tokenizer = tokenizer_in(files, diff.folder, config.vocab_size)
        draft = draft_of(options, config, diff, tokenizer)
        cache_tokens = cache_size(team, options, config, diff, draft)
        check_asked(tokenizer, options.chat_format)
        why_no_text = None
        if tokenizer is None:
            absent = f"neither {diff.folder} nor its base has a {MODEL} or {FAST}"
            why_no_text = why_not_fast() if FAST in files else absent
        end_ids = special_ids.of_contents(files, diff.folder, tokenizer, config.vocab_size).end_ids
        pair = f"{fingerprint(found.base, diff)}, new rows: {found.work.new_rows}" if team.ranks else ""
    team.agree(options, config, pair)
    cache_tokens = team.minimum(cache_tokens)
    if not team.follows:
        for line in (*found.work.notes, *tokenizer_problems(files, config.vocab_size, diff.folder)):
            warnings.warn(line, BaizeWarning, stacklevel=5)  # of the caller of Engine.from_diff
    with team.serving():
        weights = found.weights(options, team.share, progress=recovery.progress and not team.follows)
        return assemble(team, config, weights, options, cache_tokens, draft, end_ids, tokenizer, why_no_text)


@dataclass(frozen=True)
class CheckedDiff:
    """A base and its diff that fit each other and the decoder: all that their files can tell was checked, no weight was read.

    work: the plan of the whole model's tensors. files: the result's config and tokenizer. sources: the files as they were.
    """

    base: Index
    diff: CheckpointIndex
    config: ModelConfig
    work: Plan
    files: Mapping[str, bytes]
    sources: Sources

    @classmethod
    def read(
        cls,
        path_raw: str | os.PathLike[str],
        path_diff: str | os.PathLike[str],
        options: EngineOptions,
        recovery: RecoveryOptions,
    ) -> CheckedDiff:
        """Of two folders. `Engine.from_diff` says what is refused. options: `resolved`."""
        recovery = replace(recovery, dtype=options.dtype, device=options.device)
        source, diff = read_base(folder_of(path_raw)), read_diff(path_diff)
        sources = Sources(source.index.stats, diff.stats)
        work = checked_plan(source, diff, recovery)
        # nothing is published, so that links may go anywhere
        files = side_files.collect(diff.folder, source.index.folder, options.dtype, work.vocab_size, follow_links=True)
        try:
            config = ModelConfig.from_dict(json.loads(files["config.json"]))
        except ConfigError as error:
            raise ConfigError(f"{diff.folder / 'config.json'}: {error}") from None
        check({job.name: job.other.shape for job in work.jobs}, config, str(diff.folder))
        wanted = names.shapes(config)
        # a stored copy of a tied head is not wanted
        work = replace(work, jobs=tuple(job for job in work.jobs if job.name in wanted))
        return cls(source.index, diff, config, work, files, sources)

    def weights(self, options: EngineOptions, share: Share | None = None, progress: bool = True) -> dict[str, Weight]:
        """The recovered weights, or those of a rank: what `load_weights` gives for the recovered folder.

        share: only what the rank needs is read, but a table that grows is read whole, for its mean row. CheckpointError if a
        file has changed since it was checked.
        """
        work = self.work if share is None else self.part(share)
        grows = any(job.name == names.HEAD and job.grows for job in work.jobs)
        sink = WeightSink(self.config, options, share, whole_head=grows)
        target = Target(work, sink)
        workers = QUANTISING if options.quantize and options.device == "cpu" else WORKERS
        with Progress(traffic([target]), "B", progress, RECOVER) as bar:
            adder = choose.diff_adder(options.device)
            stream([target], adder, progress=bar.add, hashing=False, workers=workers)
        self.sources.check()
        sink.finish()
        warn_overflow(((name, record.overflowed) for name, record in target.records.items()), options.dtype)
        if options.device != "cpu":
            torch.cuda.synchronize(options.device)
        return sink.weights

    def part(self, share: Share) -> Plan:
        """The jobs on what a rank holds of each tensor; tables that grow stay whole."""
        jobs = []
        for job in self.work.jobs:
            if not job.grows:
                base, other = (part_of(job.name, side, self.config, share) for side in (job.base, job.other))
                job = replace(job, base=base, other=other)
            jobs.append(job)
        return replace(self.work, jobs=tuple(jobs))


@dataclass(frozen=True)
class Place:
    """Where the rows of a published tensor go: to each of `targets` an equal part of the columns.

    padding: columns of the last targets that do not come: zeros. first: the row with which they begin, where more rows come
    than they take.
    """

    targets: tuple[Weight, ...]
    padding: int = 0
    first: int | None = None

    @property
    def columns(self) -> int:
        """Of what comes."""
        return prod(self.targets[0].shape[1:]) * len(self.targets) - self.padding

    @cached_property
    def in_order(self) -> Tensor | None:
        """The elements of the only target, if they are all that comes, in its order, and are to be copied."""
        only = self.targets[0]
        alone = len(self.targets) == 1 and not self.padding and self.first is None
        return only.view(-1) if isinstance(only, Tensor) and alone else None

    def kept(self, begin: int, end: int) -> tuple[int, int]:
        """The rows of the targets that rows [begin, end) of what comes fill; before `begin` or after its end: none."""
        first, rows = self.first or 0, self.targets[0].shape[0]
        return max(begin - first, 0), min(end - first, rows)


class WeightSink:
    """A sink for `stream` that makes the weights that `load_weights` would give for the recovered folder.

    options: device, dtype and quantize, none of them "auto". share: of the rank whose slices come (`slices.part_of`);
    `whole_head`: but of the output head all rows come, of which the rank's are kept. Each tensor must come in order and from
    one thread, as `stream` brings it. A row that a piece cuts waits for the next piece.
    """

    def __init__(
        self, config: ModelConfig, options: EngineOptions, share: Share | None = None, whole_head: bool = False
    ) -> None:
        device, dtype, quantize = options.device, options.dtype, options.quantize
        self.config, self.share, self.device, self.quantize = config, share, device, quantize
        self._quantizer = choose.quantizer(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._size = ITEMSIZE[dtype]
        self._waiting: dict[str, bytearray] = {}
        shapes = names.shapes(config, share)
        self.weights: dict[str, Weight] = {}
        # where each published tensor goes: the rows of a tensor, or of a quantised matrix
        self._places: dict[str, Place] = {}
        alone = device == "cpu" and quantize is None  # as mapped files are used: each tensor by itself
        for name, shape in (shapes if alone else names.packed(config, share)).items():
            self.weights[name] = allocate(name, shape, {}, config, dtype, device, quantize, share)
            end = 0
            for part in names.parts(name):
                into, missing = targets(part, self.weights[name], share), padding(part, config, share)
                begin, end = end, end + shapes[part][0] // len(into)
                if part.endswith(names.BY_COLUMNS):
                    self._places[part] = Place(tuple(rows_of(each, begin, end) for each in into), missing)
                else:
                    self._places[part] = Place(tuple(rows_of(each, begin, end - missing) for each in into))
        if share is not None and whole_head:
            self._places[names.HEAD] = replace(self._places[names.HEAD], first=share.vocabulary(config)[0])

    def write(self, name: str, offset: int, view: memoryview) -> None:
        """Takes `view`, elements of the result's dtype that begin at byte `offset` of the tensor `name`."""
        place = self._places[name]
        if place.in_order is not None:
            begin = offset // self._size
            values = torch.frombuffer(view, dtype=self._dtype)
            with torch.inference_mode():
                place.in_order[begin : begin + len(values)].copy_(values)
            return
        row = place.columns * self._size
        waiting = self._waiting.pop(name, bytearray())
        if waiting:
            offset, view = offset - len(waiting), memoryview(waiting + view)
        whole = len(view) - len(view) % row
        if whole:
            self._put(name, place, offset // row, view[:whole])
        if whole < len(view):
            self._waiting[name] = bytearray(view[whole:])

    def _put(self, name: str, place: Place, row: int, view: memoryview) -> None:
        """Whole rows of `name`, from row `row` on; quantised on the device."""
        values = torch.frombuffer(view, dtype=self._dtype).view(-1, place.columns)
        begin, end = place.kept(row, row + len(values))
        if begin >= end:
            return
        skipped = begin + (place.first or 0) - row
        with torch.inference_mode():
            values = values[skipped : skipped + end - begin].to(self.device)
            for target, part in zip(place.targets, column_parts(values, place.targets), strict=True):
                into = rows_of(target, begin, end)
                if isinstance(into, Tensor):
                    into.copy_(part)
                    continue
                try:
                    self._quantizer(part.contiguous(), self.quantize, out=into)
                except ValueError as error:
                    raise CheckpointError(f"{name}, recovered: {error}") from None

    def finish(self) -> None:
        """Makes what comes from another weight: a rank's rows of a tied head."""
        if self.share is not None and self.config.tie_word_embeddings:
            begin, end = self.share.vocabulary(self.config)
            embedding = rows_of(self.weights[names.EMBED], begin, end)
            head = rows_of(self.weights[names.HEAD], 0, end - begin)
            if isinstance(head, Tensor) and isinstance(embedding, Tensor):
                head.copy_(embedding)
