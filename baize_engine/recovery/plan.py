"""Pairs two checkpoints tensor by tensor, purely: every mismatch is raised here, before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry
from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.recomputed import is_recomputed
from baize_engine.checkpoint.writer import TensorSpec
from baize_engine.errors import MismatchError

GROWING = ("model.embed_tokens.weight", "lm_head.weight")  # tensors with a row for each vocabulary entry
MUST_AGREE = (  # what shapes cannot tell: LLaMA-1 and Llama-2 of one size differ only here
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_size",
    "num_hidden_layers",
)
MAX_GROWING_ROW = 1 << 20  # elements of a row whose mean is taken, held as float64: the longest of any LLaMA has 16384
LISTED = 3  # mismatches named in one message; the rest are counted


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the result: out = other + base (recover: other is the diff) or other - base (make_diff: the tuned model).

    `other` may have more rows than `base`; each of them meets the mean row of the base.
    """

    base: Entry
    other: TensorEntry
    dtype: str

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
        return self.other.shape[0] - self.base.shape[0] if self.other.shape else 0

    @property
    def traffic(self) -> int:
        """Bytes read and written for this tensor."""
        return self.base.nbytes + self.other.nbytes + self.spec.nbytes


@dataclass(frozen=True)
class Plan:
    """All jobs, in the order in which `other`'s files hold them, and what was left out."""

    jobs: tuple[Job, ...]
    skipped: tuple[str, ...]  # rotary buffers
    dtype: str
    vocab_size: int  # rows of the result's embedding

    @property
    def traffic(self) -> int:
        return sum(job.traffic for job in self.jobs)

    @property
    def extra_rows(self) -> int:
        return max((job.extra_rows for job in self.jobs), default=0)


def plan(base: Index, other: CheckpointIndex, dtype: str) -> Plan:
    """The work of combining `base` with `other` (a diff or a tuned model) into tensors of `dtype`.

    Raises MismatchError naming the first tensors that are missing on a side, differ in shape beyond added vocabulary
    rows, or are of a type that is not float32, float16 or bfloat16.
    """
    if dtype not in FLOATS:
        raise MismatchError(f"dtype {dtype!r} is not one of {', '.join(FLOATS)}")
    kept_base = {name: entry for name, entry in base.entries.items() if not is_recomputed(name)}
    kept_other = {name: entry for name, entry in other.entries.items() if not is_recomputed(name)}
    _check_size(kept_base, kept_other, base, other)
    problems = [f"{name} is in {other.folder} but not in {base.folder}" for name in kept_other if name not in kept_base]
    problems += [
        f"{name} is in {base.folder} but not in {other.folder}" for name in kept_base if name not in kept_other
    ]
    ordered = sorted(kept_other.values(), key=lambda entry: (entry.path.name, entry.offset))
    jobs = [Job(kept_base[entry.name], entry, dtype) for entry in ordered if entry.name in kept_base]
    for job in jobs:
        problems += _job_problems(job)
    growths = {job.extra_rows for job in jobs if job.name in GROWING}
    if not problems and len(growths) > 1:
        problems.append(f"{' and '.join(GROWING)} grow by different numbers of rows ({sorted(growths)})")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise MismatchError(f"{other.folder} does not fit {base.folder}: " + "; ".join(problems[:LISTED]) + more)
    embedding = kept_other.get(GROWING[0])
    if embedding is None:
        raise MismatchError(f"{other.folder} has no tensor {GROWING[0]}: wanted a LLaMA checkpoint")
    skipped = sorted({*base.entries, *other.entries} - {*kept_base, *kept_other})
    return Plan(tuple(jobs), tuple(skipped), dtype, embedding.shape[0])


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
    embedding = entries.get(GROWING[0])
    if embedding is None or len(embedding.shape) != 2:
        return None
    return sum(name.endswith(".input_layernorm.weight") for name in entries), embedding.shape[1]


def _job_problems(job: Job) -> list[str]:
    problems = []
    for entry in (job.base, job.other):
        if entry.dtype not in FLOATS:
            problems.append(f"{entry.name} in {entry.path.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}")
    base, other = job.base.shape, job.other.shape
    if base != other:
        grows = (
            job.name in GROWING
            and len(base) == len(other) == 2
            and base[1:] == other[1:]
            and 0 < base[0] < other[0]
            and job.row <= MAX_GROWING_ROW
        )
        if not grows:
            problems.append(
                f"{job.name} has shape {list(base)} in {job.base.path.name} and {list(other)} in {job.other.path.name}"
            )
    return problems


def check_configs(base: Mapping[str, Any], other: Mapping[str, Any], base_name: str, other_name: str) -> None:
    """Raises MismatchError where two normalised configs describe models that differ though their shapes may agree.

    A key that one of them lacks was not told by its file, and is not compared.
    """
    differing = [
        f"{key} is {base[key]!r} in {base_name} and {other[key]!r} in {other_name}"
        for key in MUST_AGREE
        if key in base and key in other and base[key] != other[key]
    ]
    if differing:
        raise MismatchError(
            "the configs describe different models: "
            + "; ".join(differing)
            + " (--force goes on where the shapes agree)"
        )
