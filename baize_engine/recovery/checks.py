"""Checks that may refuse a plan before the long work, though every shape fits.

The two sides may look swapped or be of different models, or the diff may have been made from another base. `force` skips
these checks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from statistics import median
from typing import Any

from baize_engine.checkpoint import config_file
from baize_engine.checkpoint.base import Base, Index
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.checkpoint.manifest import MANIFEST_NAME, read_manifest
from baize_engine.checkpoint.norms import SUFFIX, mean_magnitude, why_diff
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import MismatchError
from baize_engine.recovery.new_rows import decide
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Plan, plan, some
from baize_engine.recovery.vocabulary_growth import MeanRow, mean_row
from baize_engine.recovery.widened import widened

# Mean |norm weight| over the base's: about 1 for a model, below 0.1 for every published diff we know of.
FULL_MODEL = 0.5
# what shapes cannot tell: LLaMA-1 and Llama-2 of one size differ only here
MUST_AGREE = (
    "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "hidden_size", "num_hidden_layers",
)  # fmt: skip
KINDS_OF_MODEL = ("model_type", "architectures")  # differ where a finetune built more around the base's model


def check_roles(base: Index, other: Index, options: RecoveryOptions) -> None:
    """MismatchError where both sides are one folder, or the base is a weight diff. Done before shapes are compared, which would
    give a misleading message.
    """
    if base.folder.resolve() == other.folder.resolve():
        raise MismatchError(
            f"{other.folder} is given both as the base and as the {options.other_side}, wanted two folders"
        )
    if not options.force and why_diff(base):
        swapped = (
            ""
            if why_diff(other)
            else f", and {other.folder}, given as the {options.other_side}, like a model: were the two swapped?"
        )
        raise MismatchError(f"{base.folder}, given as the base, looks like a weight diff{swapped} (--force continues)")


def checked_plan(base: Base, other: CheckpointIndex, options: RecoveryOptions, base_mean: MeanRow = mean_row) -> Plan:
    """The plan of `base` and `other`, with its new rows decided, once names, shapes, configs and norm weights agree.

    Errors as for `recover`.
    """
    config = config_file.read_normalised(other.folder)
    work = plan(base.index, other, options, tied=config["tie_word_embeddings"])
    if not options.force:
        check_configs(base.config, config, str(base.config_path), str(other.folder / "config.json"), options.keep_extra)
        _check_norms(work, other, options)
        if not options.subtract:
            _check_base_rows(work, base.index, other)
    return decide(work, other, options, base_mean)


def check_configs(
    base: Mapping[str, Any], other: Mapping[str, Any], base_name: str, other_name: str, keep_extra: bool = False
) -> None:
    """MismatchError where two normalised configs describe models that differ though their shapes may agree.

    A key that one of them lacks was not in its file, and is not compared. With `keep_extra` the kinds of model may differ:
    what is kept is what the other one has more.
    """
    keys = MUST_AGREE if keep_extra else (*KINDS_OF_MODEL, *MUST_AGREE)
    differing = [key for key in keys if None not in (found := (base.get(key), other.get(key))) and found[0] != found[1]]
    if not differing:
        return
    if set(differing) <= set(KINDS_OF_MODEL):
        remedy = "--keep_extra if the finetune holds the base's model and more, or --force"
    else:
        remedy = "--force continues if the shapes agree"
    told = "; ".join(f"{key} is {base[key]!r} in {base_name} and {other[key]!r} in {other_name}" for key in differing)
    raise MismatchError(f"the configs describe different models: {told} ({remedy})")


def norm_ratio(work: Plan) -> float:
    """The median over all norm tensors of mean |other| / mean |base|; 0.0 where the base has none to compare with."""
    ratios = []
    for job in work.added:
        if job.name.endswith(SUFFIX):
            base = mean_magnitude(job.base)
            if base > 0:
                ratios.append(mean_magnitude(job.other) / base)
    return median(ratios) if ratios else 0.0


def _check_norms(work: Plan, other: Index, options: RecoveryOptions) -> None:
    """MismatchError where recover is given a whole model, or make_diff a diff."""
    ratio = norm_ratio(work)
    if options.subtract == (ratio < FULL_MODEL):
        found, wanted = "a whole model, not a weight diff", "below"
        if options.subtract:
            found, wanted = "a weight diff already", "at least"
        raise MismatchError(
            f"{other.folder} looks like {found}: its norm weights are {ratio:.2f} times as large as the base's, wanted "
            f"{wanted} {FULL_MODEL} (--force continues)"
        )


def base_rows(work: Plan) -> dict[str, str]:
    """SHA-256 of the first row of each of the base's tensors, widened to float32: some MB of any model."""
    digests = {}
    for job in work.added:
        digest = hashlib.sha256()
        for block in widened(job.base, job.row if len(job.base.shape) > 1 else job.base.numel):
            digest.update(block)
        digests[job.name] = digest.hexdigest()
    return digests


def _check_base_rows(work: Plan, base: Index, diff: Index) -> None:
    """MismatchError where the diff's own manifest was made with a base whose first rows differ. Others carry no hashes."""
    if not is_file(diff.folder / MANIFEST_NAME):
        return
    carried = read_manifest(diff.folder).base_rows
    if not carried:
        return
    found = base_rows(work)
    differing = [name for name in found if carried.get(name, found[name]) != found[name]]
    if differing:
        raise MismatchError(
            f"{diff.folder} was made from another base than {base.folder}: {len(differing)} of {len(found)} tensors differ "
            f"in their first row: {some(differing)} (--force continues)"
        )
