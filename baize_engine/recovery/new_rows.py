"""Vocabulary rows that only the diff has: are they differences from the base's mean row, or whole rows?

Published diffs were made in two ways. alpaca's weight_diff.py and its many copies (open-instruct's among them) let the base
grow by its mean row before they subtract. FastChat's first apply_delta (Vicuna v0; StableVicuna, Wombat and LLaVA follow it)
sets the base's new rows to zero, so that the diff holds them whole. No file says which it was, but both train alike: a new row
begins as the mean row, and in the embedding it hardly leaves it, because the pad token that it belongs to gets no gradient.
A whole row of the embedding therefore points where the base's mean row points and has its size, while a difference from the
mean row is next to nothing, and one from a random row points anywhere.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.manifest import MANIFEST_NAME, read_manifest
from baize_engine.checkpoint.names import EMBED
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import MismatchError
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import WRONG_BASE, Fill, Job, Plan
from baize_engine.recovery.vocabulary_growth import MeanRow
from baize_engine.recovery.widened import floats

WHOLE_COSINE = 0.8  # between a whole row and the mean row at least; two random rows of 4096 elements have 0.02
WHOLE_SIZES = (0.5, 2.0)  # of a whole row, in lengths of the mean row
MAX_ELEMENTS = 1 << 20  # elements of new rows that are looked at; published diffs have 1 to 3 rows of 4096 to 8192


@dataclass(frozen=True)
class Likeness:
    """A row against the base's mean row: the cosine of their angle, and its length in lengths of the mean row."""

    cosine: float
    size: float

    @property
    def is_whole(self) -> bool:
        return self.cosine >= WHOLE_COSINE and WHOLE_SIZES[0] <= self.size <= WHOLE_SIZES[1]


def decide(work: Plan, other: CheckpointIndex, options: RecoveryOptions, mean_row: MeanRow) -> Plan:
    """`work` with its new rows added to what `options.new_rows` says, or to what the rows themselves tell.

    `mean_row` gives the mean of a tensor's rows; it is asked for that of the base's embedding where nothing else decides.
    MismatchError where the diff's manifest says that its base had all of these rows.
    """
    if not work.extra_rows:
        return work
    fill, why = _chosen(work, other, options, mean_row)
    one = work.extra_rows == 1
    tokens = (
        f"1 token of the {options.other_side} is"
        if one
        else f"{work.extra_rows} tokens of the {options.other_side} are"
    )
    rows = "its row" if one else "their rows"
    if fill == "zero":
        did = f"{rows} {'was' if one else 'were'} stored unchanged"
    else:
        did = f"the mean of the base's rows was {'subtracted from' if work.subtract else 'added to'} {rows}"
    return work.with_rows(fill, f"{tokens} not in the base: {did}, {why}")


def _chosen(work: Plan, other: CheckpointIndex, options: RecoveryOptions, mean_row: MeanRow) -> tuple[Fill, str]:
    """What the new rows are added to, and why, as the end of a sentence."""
    if options.new_rows != "auto":
        return "zero" if options.new_rows == "zero" else "mean", f"as --new_rows {options.new_rows} says"
    if work.subtract:
        return "mean", "and recover adds it again"
    if is_file(other.folder / MANIFEST_NAME):
        manifest = read_manifest(other.folder)
        if manifest.new_rows in ("mean", "zero"):
            return "zero" if manifest.new_rows == "zero" else "mean", f"as {MANIFEST_NAME} of the diff says"
        if manifest.new_rows == "none" and not options.force:
            raise MismatchError(
                f"{other.folder} was made from a base that has all of its tokens, and this base lacks {work.extra_rows} of "
                f"them: {WRONG_BASE} (--force uses this one all the same)"
            )
    job = next(job for job in work.jobs if job.name == EMBED)
    mean = mean_row(job.base)
    found = [likeness(row, mean) for row in _new_rows(job)]
    best = max(found, key=lambda each: (each.is_whole, each.cosine))
    looks, them, difference = "it looks", "it", "a difference"
    if work.extra_rows > 1:
        looks, them, difference = "they look", "them", "differences"
    compared = (
        f"similarity {best.cosine:.2f} and {best.size:.2f} times its size, where whole rows have at least {WHOLE_COSINE} and "
        f"{WHOLE_SIZES[0]} to {WHOLE_SIZES[1]} times"
    )
    if best.is_whole:
        whole = f"because {looks} whole: compared with the mean of the base's rows, {compared}"
        return "zero", f"{whole} (--new_rows mean adds that mean)"
    return "mean", f"because {looks} like {difference} from it: {compared} (--new_rows zero stores {them} unchanged)"


def _new_rows(job: Job) -> Iterator[array[float]]:
    """The first of the rows that only the diff has, as float32."""
    for number in range(job.base.shape[0], job.other.shape[0])[: max(1, MAX_ELEMENTS // job.row)]:
        yield floats(job.other, job.row, number * job.row)


def likeness(row: Sequence[float], mean: Sequence[float]) -> Likeness:
    """How much `row` is like the mean row; both numbers are 0 where one of the rows is zero or not finite."""
    length, unit = math.sqrt(math.fsum(x * x for x in row)), math.sqrt(math.fsum(x * x for x in mean))
    if not (0 < length < math.inf and 0 < unit < math.inf):
        return Likeness(0.0, 0.0)
    dot = math.fsum(a * b for a, b in zip(row, mean, strict=True))
    return Likeness(dot / (length * unit), length / unit)
