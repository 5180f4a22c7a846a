"""Pairs two checkpoints tensor by tensor, purely: every mismatch is raised here, before a byte is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry
from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.recomputed import is_recomputed
from baize_engine.checkpoint.writer import TensorSpec
from baize_engine.errors import MismatchError, RequestError
from baize_engine.recovery.wrapped_names import EMBED, unwrapped

HEAD = "lm_head.weight"
GROWING = (EMBED, HEAD)  # tensors with a row for each vocabulary entry
MAX_GROWING_ROW = 1 << 20  # elements of a row whose mean is taken, held as float64: the longest of any LLaMA has 16384
WRONG_BASE = "is the base the one that the diff was made from?"
DIFF = "diff"  # the role of the other side in a recovery
LISTED = 3  # mismatches named in one message; the rest are counted

NewRowsChoice = Literal["auto", "mean", "zero"]
# What elements that the base lacks are added to: its mean row, zero, or nothing at all.
Fill = Literal["mean", "zero", "nothing"]


@dataclass(frozen=True)
class MatchOptions:
    """How a base and another side that do not match tensor by tensor may be joined; `recover` says what each means."""

    new_rows: str = "auto"
    keep_extra: bool = False
    drop_rows: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.new_rows not in ("auto", "mean", "zero"):
            raise RequestError(f"new_rows is {self.new_rows!r}, wanted 'auto', 'mean' or 'zero'")


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the result: out = other + base (recover: other is the diff) or other - base (make_diff: the tuned model).

    `other` may have more rows than `base`; `fill` is what those are added to. A tensor that is stored as it is has a base
    of no rows.
    """

    base: Entry
    other: TensorEntry
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
    """All jobs, in the order in which `other`'s files hold them, and what was left out or joined otherwise.

    `stored`: tensors that the base lacks, stored as they are. `notes`: what a user should hear of, a line each.
    """

    jobs: tuple[Job, ...]
    skipped: tuple[str, ...]  # buffers that every reader recomputes
    dtype: str
    vocab_size: int  # rows of the result's embedding
    stored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def traffic(self) -> int:
        return sum(job.traffic for job in self.jobs)

    @property
    def layers(self) -> int:
        return count_layers(job.name for job in self.jobs)

    @property
    def extra_rows(self) -> int:
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
        """With new vocabulary rows added to `fill`, which `note` tells."""
        jobs = tuple(replace(job, fill=fill) if job.extra_rows else job for job in self.jobs)
        return replace(self, jobs=jobs, notes=(*self.notes, note))


def plan(
    base: Index,
    other: CheckpointIndex,
    dtype: str,
    how: MatchOptions | None = None,
    *,
    tied: bool = False,
    role: str = DIFF,
) -> Plan:
    """The work of combining `base` with `other` (a diff or a tuned model, by its `role`) into tensors of `dtype`.

    `tied`: the result's output head is its embedding. New vocabulary rows are added to the mean row until `with_rows` says
    otherwise. Raises MismatchError naming the first tensors that are missing on a side, differ in shape beyond vocabulary
    rows, or are of a type that is not float32, float16 or bfloat16.
    """
    how = how or MatchOptions()
    if dtype not in FLOATS:
        raise MismatchError(f"dtype {dtype!r} is not one of {', '.join(FLOATS)}")
    notes: list[str] = []
    sides: list[dict[str, Entry]] = []
    for index in (base, other):
        kept = {name: entry for name, entry in index.entries.items() if not is_recomputed(name)}
        bare = unwrapped(kept, str(index.folder))
        if bare.prefix:
            notes.append(f"the prefix {bare.prefix!r} of the names in {index.folder} was taken off")
        narrowed = sum(any(part.narrowed for part in entry.parts) for entry in kept.values())
        if narrowed:
            notes.append(f"{narrowed} tensor(s) of {index.folder} are float64, rounded to float32 before the sum")
        sides.append(dict(bare.entries))
    kept_base, kept_other = sides
    if tied and (HEAD in kept_base) != (HEAD in kept_other):
        owner = base if kept_base.pop(HEAD, None) is not None else other
        kept_other.pop(HEAD, None)
        notes.append(f"{HEAD}, which only {owner.folder} has, was left out: the config ties it to the embedding")
    elif tied and HEAD in kept_base:
        notes.append(f"the config ties {HEAD} to the embedding: readers take that and not the stored one")
    _check_size(kept_base, kept_other, base, other)
    stored = [name for name in kept_other if name not in kept_base and name != HEAD] if how.keep_extra else []
    problems = _unpaired(kept_base, kept_other, base, other, how)
    ordered = sorted(kept_other.values(), key=lambda entry: (entry.path.name, entry.parts[0].offset))
    jobs = []
    for entry in ordered:
        if not isinstance(entry, TensorEntry):
            raise TypeError(f"{entry.name} lies in several parts, which only a base may")
        if entry.name in stored:
            nothing = replace(entry, shape=(0, *entry.shape[1:]))
            jobs.append(Job(nothing, entry, dtype, "nothing"))
        elif entry.name in kept_base:
            jobs.append(Job(_cut(kept_base[entry.name], entry, how), entry, dtype))
    for job in jobs:
        problems += _job_problems(job, role)
    growths = {job.extra_rows for job in jobs if job.name in GROWING}
    if not problems and len(growths) > 1:
        problems.append(f"{' and '.join(GROWING)} grow by different numbers of rows ({sorted(growths)})")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise MismatchError(f"{other.folder} does not fit {base.folder}: " + "; ".join(problems[:LISTED]) + more)
    embedding = kept_other.get(EMBED)
    if embedding is None:
        raise MismatchError(f"{other.folder} has no tensor {EMBED}: wanted a LLaMA checkpoint")
    dropped = max(
        kept_base[job.name].shape[0] - job.base.shape[0] for job in jobs if job.name in GROWING and job.base.shape
    )
    if dropped > 0:
        notes.append(f"the last {dropped} vocabulary row(s) of {base.folder} were left out: {other.folder} lacks them")
    if stored:
        notes.append(f"{len(stored)} tensor(s) not in the base were stored without a sum, as {dtype}: {some(stored)}")
    skipped = sorted(name for name in {*base.entries, *other.entries} if is_recomputed(name))
    return Plan(tuple(jobs), tuple(skipped), dtype, embedding.shape[0], tuple(stored), tuple(notes))


def some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _unpaired(
    kept_base: Mapping[str, Entry], kept_other: Mapping[str, Entry], base: Index, other: Index, how: MatchOptions
) -> list[str]:
    extra = [name for name in kept_other if name not in kept_base]
    problems = [f"{name} is in {other.folder} but not in {base.folder}" for name in extra]
    missing = [f"{name} is in {base.folder} but not in {other.folder}" for name in kept_base if name not in kept_other]
    # never an extra: the base's own head is then its embedding, and what the other has is a difference to it
    if HEAD in extra:
        return [*missing, f"{problems[extra.index(HEAD)]}, whose head is its embedding"]
    if how.keep_extra:
        return missing
    if extra and not missing and len(extra) < len(kept_other):
        them = "it" if len(extra) == 1 else f"all {len(extra)}"
        problems[min(len(extra), LISTED) - 1] += (
            f" (--keep_extra of recover stores {them} in the result without a sum, rounded to its dtype)"
        )
    return problems + missing


def _cut(base: Entry, other: TensorEntry, how: MatchOptions) -> Entry:
    """The base's tensor without its last vocabulary rows, where it has more than `other` and they may be dropped."""
    drops = (
        how.drop_rows
        and base.name in GROWING
        and len(base.shape) == len(other.shape) == 2
        and base.shape[0] > other.shape[0]
    )
    return replace(base, shape=(other.shape[0], *base.shape[1:])) if drops else base


def _check_size(
    kept_base: Mapping[str, Entry],
    kept_other: Mapping[str, Entry],
    base: Index,
    other: Index,
) -> None:
    """One clear message for the commonest mistake, a base of another size, in place of hundreds of tensor mismatches."""
    sizes = [(_model_size(kept), index.folder) for kept, index in ((kept_base, base), (kept_other, other))]
    (base_size, base_folder), (other_size, other_folder) = sizes
    if base_size and other_size and base_size != other_size:
        raise MismatchError(
            f"wrong size of base: {base_folder} has {base_size[0]} layers of hidden size {base_size[1]}, "
            f"{other_folder} has {other_size[0]} layers of hidden size {other_size[1]}"
        )


def _model_size(entries: Mapping[str, Entry]) -> tuple[int, int] | None:
    embedding = entries.get(EMBED)
    if embedding is None or len(embedding.shape) != 2:
        return None
    return count_layers(entries), embedding.shape[1]


def count_layers(names: Iterable[str]) -> int:
    """The layers of a model by the names of its tensors."""
    return sum(name.endswith(".input_layernorm.weight") for name in names)


def _job_problems(job: Job, role: str) -> list[str]:
    problems = []
    for entry in (job.base, job.other) if job.fill != "nothing" else (job.other,):
        if entry.dtype not in FLOATS:
            alone = ", and only those are stored" if job.fill == "nothing" else ""
            problems.append(
                f"{entry.name} in {entry.path.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}{alone}"
            )
    base, other = job.base.shape, job.other.shape
    if job.fill != "nothing" and base != other:
        is_table = job.name in GROWING and len(base) == len(other) == 2 and base[1:] == other[1:]
        if not (is_table and 0 < base[0] < other[0] and job.row <= MAX_GROWING_ROW):
            problem = (
                f"{job.name} has shape {list(base)} in the base ({job.base.path.name}) and {list(other)} in the {role} "
                f"({job.other.path.name})"
            )
            if is_table and base[0] > other[0] > 0:
                swapped = "; or were the two swapped?" if role != DIFF else ""
                problem += (
                    f": a base of {other[0]} rows fits, such as the original without added tokens (--drop_rows leaves the "
                    f"base's last {base[0] - other[0]} row(s) out, if they were added by hand){swapped}"
                )
            problems.append(problem)
    return problems
