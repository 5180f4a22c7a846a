"""Pairs two checkpoints tensor by tensor. Pure: every mismatch is raised here, before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry
from baize_engine.checkpoint.names import EMBED, HEAD, count_layers, is_recomputed
from baize_engine.checkpoint.writer import TensorSpec
from baize_engine.errors import MismatchError
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.wrapped_names import unwrapped, wrapper_of

GROWING = (EMBED, HEAD)  # tensors with a row for each vocabulary entry
MAX_GROWING_ROW = 1 << 20  # elements of a row whose mean is taken, held as float64: the longest of any LLaMA has 16384
WRONG_BASE = "is the base the one that the diff was made from?"
LISTED = 3  # mismatches named in one message; the rest are counted

# What elements that the base lacks are added to: its mean row, zero, or nothing at all.
Fill = Literal["mean", "zero", "nothing"]


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the result: other + base (recover: other is the diff) or other - base (make_diff: the finetuned model).

    `other` may have more rows than `base`; they are added to `fill`. A tensor that is stored as it is has a base without rows.
    """

    base: Entry
    other: Entry
    dtype: str
    fill: Fill = "mean"

    @property
    def name(self) -> str:
        return self.other.name

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.other.name, self.dtype, self.other.shape)

    @property
    def row(self) -> int:
        """Elements of one row: the product of all dimensions but the first."""
        return prod(self.other.shape[1:])

    @property
    def extra_rows(self) -> int:
        """Vocabulary rows that the base lacks."""
        if self.fill == "nothing" or not self.other.shape:
            return 0
        return self.other.shape[0] - self.base.shape[0]

    @property
    def grows(self) -> bool:
        """Whether `other` has elements for which the base has none."""
        return self.other.numel > self.base.numel

    @property
    def traffic(self) -> int:
        """Bytes read and written for this tensor."""
        return self.base.nbytes + self.other.nbytes + self.spec.nbytes


@dataclass(frozen=True)
class Plan:
    """All jobs of a result, in the order in which `other`'s files hold them, and what was left out or combined otherwise."""

    jobs: tuple[Job, ...]
    skipped: tuple[str, ...]  # buffers that every reader recomputes
    vocab_size: int  # rows of the result's embedding
    subtract: bool = False  # other - base
    stored: tuple[str, ...] = ()  # tensors that the base lacks, stored as they are
    notes: tuple[str, ...] = ()  # what a user should hear of, a line each

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.jobs]

    @property
    def layers(self) -> int:
        return count_layers(self.names)

    @property
    def extra_rows(self) -> int:
        """Vocabulary rows that the base lacks."""
        return max((job.extra_rows for job in self.jobs), default=0)

    @property
    def new_rows(self) -> str:
        """What vocabulary rows not in the base are added to; "none" where there are none."""
        return next((job.fill for job in self.jobs if job.extra_rows), "none")

    @property
    def added(self) -> tuple[Job, ...]:
        """The jobs that have a base to be added to."""
        return tuple(job for job in self.jobs if job.fill != "nothing")

    def with_rows(self, fill: Fill, note: str) -> Plan:
        """This plan with new vocabulary rows added to `fill`, which `note` explains."""
        jobs = tuple(replace(job, fill=fill) if job.extra_rows else job for job in self.jobs)
        return replace(self, jobs=jobs, notes=(*self.notes, note))


def plan(base: Index, other: CheckpointIndex, options: RecoveryOptions, *, tied: bool = False) -> Plan:
    """The work of combining `base` with `other`, a diff or a finetuned model, into tensors of `options.dtype`.

    `tied`: the result's output head is its embedding. New vocabulary rows are added to the mean row until `with_rows` says
    otherwise. Raises MismatchError naming the first tensors that are missing on a side, differ in shape beyond vocabulary
    rows, or are of a type that is not float32, float16 or bfloat16.
    """
    notes: list[str] = []
    ours, theirs = _weights(base, notes), _weights(other, notes)
    if tied and (HEAD in ours) != (HEAD in theirs):
        owner = base if ours.pop(HEAD, None) is not None else other
        theirs.pop(HEAD, None)
        notes.append(f"{HEAD}, which only {owner.folder} has, was left out: the config ties it to the embedding")
    elif tied and HEAD in ours:
        notes.append(f"the config ties {HEAD} to the embedding: readers take that and not the stored one")
    _check_size(ours, theirs, base, other)
    problems = _unpaired(ours, theirs, base, other, options)
    jobs = []
    for entry in sorted(theirs.values(), key=lambda entry: (entry.path.name, entry.parts[0].offset)):
        if not isinstance(entry, TensorEntry):
            raise TypeError(f"{entry.name} is stored in several parts, which only a base may be")
        if entry.name in ours:
            jobs.append(Job(_cut(ours[entry.name], entry, options), entry, options.dtype))
        elif options.keep_extra and entry.name != HEAD:
            nothing = replace(entry, shape=(0, *entry.shape[1:]))
            jobs.append(Job(nothing, entry, options.dtype, "nothing"))
    for job in jobs:
        problems += _job_problems(job, options)
    growths = {job.extra_rows for job in jobs if job.name in GROWING}
    if not problems and len(growths) > 1:
        problems.append(
            f"{' and '.join(GROWING)} have different numbers of tokens that the base lacks ({sorted(growths)}), wanted the same"
        )
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise MismatchError(f"{other.folder} does not fit {base.folder}: " + "; ".join(problems[:LISTED]) + more)
    embedding = theirs.get(EMBED)
    if embedding is None:
        raise MismatchError(f"{other.folder} has no tensor {EMBED}: wanted a LLaMA checkpoint")
    dropped = max(ours[job.name].shape[0] - job.base.shape[0] for job in jobs if job.name in GROWING and job.base.shape)
    if dropped > 0:
        rows = "the last token" if dropped == 1 else f"the last {dropped} tokens"
        were = "was" if dropped == 1 else "were"
        notes.append(f"{rows} of {base.folder} {were} left out: {other.folder} has fewer")
    stored = [name for name in theirs if name not in ours and name != HEAD] if options.keep_extra else []
    if stored:
        notes.append(
            f"{len(stored)} tensor(s) not in the base were stored as they are, in {options.dtype}: {some(stored)}"
        )
    skipped = sorted(name for name in {*base.entries, *other.entries} if is_recomputed(name))
    return Plan(tuple(jobs), tuple(skipped), embedding.shape[0], options.subtract, tuple(stored), tuple(notes))


def some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _weights(index: Index, notes: list[str]) -> dict[str, Entry]:
    """The tensors of a side by the model's own names, without recomputed buffers; what was changed goes to `notes`."""
    kept = {name: entry for name, entry in index.entries.items() if not is_recomputed(name)}
    if prefix := wrapper_of(kept):
        notes.append(f"the prefix {prefix!r} of the names in {index.folder} was taken off")
    narrowed = sum(any(part.narrowed for part in entry.parts) for entry in kept.values())
    if narrowed:
        notes.append(f"{narrowed} tensor(s) of {index.folder} are float64, rounded to float32 before the sum")
    return unwrapped(kept, str(index.folder))


def _unpaired(
    ours: Mapping[str, Entry], theirs: Mapping[str, Entry], base: Index, other: Index, options: RecoveryOptions
) -> list[str]:
    extra = [name for name in theirs if name not in ours]
    problems = [f"{name} is in {other.folder} but not in {base.folder}" for name in extra]
    missing = [f"{name} is in {base.folder} but not in {other.folder}" for name in ours if name not in theirs]
    # never an extra: the base's own head is then its embedding, and what the other has is a difference to it
    if HEAD in extra:
        return [*missing, f"{problems[extra.index(HEAD)]}, whose head is its embedding"]
    if options.keep_extra:
        return missing
    if extra and not missing and len(extra) < len(theirs):
        them = "it" if len(extra) == 1 else f"all {len(extra)}"
        problems[min(len(extra), LISTED) - 1] += (
            f" (--keep_extra of recover stores {them} in the result, rounded to its dtype)"
        )
    return problems + missing


def _cut(base: Entry, other: TensorEntry, options: RecoveryOptions) -> Entry:
    """The base's tensor without its last vocabulary rows, where it has more than `other` and they may be dropped."""
    drops = (
        options.drop_rows
        and base.name in GROWING
        and len(base.shape) == len(other.shape) == 2
        and base.shape[0] > other.shape[0]
    )
    return replace(base, shape=(other.shape[0], *base.shape[1:])) if drops else base


def _check_size(ours: Mapping[str, Entry], theirs: Mapping[str, Entry], base: Index, other: Index) -> None:
    """One clear message for the commonest mistake, a base of another size, in place of hundreds of tensor mismatches."""
    sizes = []
    for entries in (ours, theirs):
        embedding = entries.get(EMBED)
        if embedding is None or len(embedding.shape) != 2:
            return
        sizes.append((count_layers(entries), embedding.shape[1]))
    found, wanted = sizes
    if found != wanted:
        raise MismatchError(
            f"wrong size of base: {base.folder} has {found[0]} layers of hidden size {found[1]}, "
            f"{other.folder} has {wanted[0]} layers of hidden size {wanted[1]}"
        )


def _job_problems(job: Job, options: RecoveryOptions) -> list[str]:
    problems = []
    for entry in (job.base, job.other) if job.fill != "nothing" else (job.other,):
        if entry.dtype not in FLOATS:
            alone = ", and only those are stored" if job.fill == "nothing" else ""
            problems.append(
                f"{entry.name} in {entry.path.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}{alone}"
            )
    base, other = job.base.shape, job.other.shape
    if job.fill == "nothing" or base == other:
        return problems
    is_table = job.name in GROWING and len(base) == len(other) == 2 and base[1:] == other[1:]
    if is_table and 0 < base[0] < other[0] and job.row <= MAX_GROWING_ROW:
        return problems
    problem = (
        f"{job.name} has shape {list(base)} in the base ({job.base.path.name}) and {list(other)} in the "
        f"{options.other_side} ({job.other.path.name})"
    )
    if is_table and base[0] > other[0] > 0:
        swapped = "; or were the two swapped?" if options.subtract else ""
        problem += (
            f": a base of {other[0]} rows fits, such as the original without added tokens (--drop_rows leaves out the "
            f"base's last {base[0] - other[0]} row(s), one for each token that was added by hand){swapped}"
        )
    return [*problems, problem]
