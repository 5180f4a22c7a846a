"""`recover`: a base and one or several published diffs become whole models, each in a new folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, overload

from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.hub import folder_of, local_path
from baize_engine.errors import RequestError
from baize_engine.recovery.checks import check_roles
from baize_engine.recovery.diff_folder import read_diff
from baize_engine.recovery.expect import Expectation
from baize_engine.recovery.memory import MEMORY_MIB
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.output import Output, OutputRequest
from baize_engine.recovery.output_name import AnyPath, all_tuned_beside
from baize_engine.recovery.published_sum import TOLERANCE
from baize_engine.recovery.result import Result
from baize_engine.recovery.run import run
from baize_engine.recovery.vocabulary_growth import mean_row


@overload
def recover(  # type: ignore[overload-overlap]  # a str is a sequence of str: it is one path
    path_raw: AnyPath,
    path_diff: AnyPath,
    path_tuned: AnyPath | None = ...,
    dtype: str = ...,
    device: str = ...,
    resume: bool = ...,
    progress: bool = ...,
    *,
    force: bool = ...,
    hash_sources: bool = ...,
    memory_mib: int = ...,
    new_rows: str = ...,
    keep_extra: bool = ...,
    drop_rows: bool = ...,
    follow_links: bool = ...,
    expect_sum: float | None = ...,
    expect_manifest: AnyPath | None = ...,
    expect_sum_atol: float = ...,
) -> Result: ...
@overload
def recover(
    path_raw: AnyPath,
    path_diff: Sequence[AnyPath],
    path_tuned: Sequence[AnyPath] | None = ...,
    dtype: str = ...,
    device: str = ...,
    resume: bool = ...,
    progress: bool = ...,
    *,
    force: bool = ...,
    hash_sources: bool = ...,
    memory_mib: int = ...,
    new_rows: str = ...,
    keep_extra: bool = ...,
    drop_rows: bool = ...,
    follow_links: bool = ...,
    expect_sum: Sequence[float | None] | None = ...,
    expect_manifest: Sequence[AnyPath | None] | None = ...,
    expect_sum_atol: float = ...,
) -> list[Result]: ...
def recover(
    path_raw: AnyPath,
    path_diff: AnyPath | Sequence[AnyPath],
    path_tuned: AnyPath | Sequence[AnyPath] | None = None,
    dtype: str = "float16",
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
    *,
    force: bool = False,
    hash_sources: bool = False,
    memory_mib: int = MEMORY_MIB,
    new_rows: str = "auto",
    keep_extra: bool = False,
    drop_rows: bool = False,
    follow_links: bool = False,
    expect_sum: float | Sequence[float | None] | None = None,
    expect_manifest: AnyPath | Sequence[AnyPath | None] | None = None,
    expect_sum_atol: float = TOLERANCE,
) -> Result | list[Result]:
    """Writes base + diff to a new folder and returns what was made.

    Every element is `float32(base) + float32(diff)`, rounded once to nearest even to `dtype`; every NaN becomes the canonical
    quiet NaN. Rotary buffers, and others that every reader recomputes, are left out. The process stays below `memory_mib` MiB
    whatever the model's size (on a GPU, torch's own memory comes on top).

    Arguments:
        path_raw: folder of the base, in the layout of transformers or Meta's original one, or a hub id ("owner/name") where
            huggingface_hub is installed.
        path_diff: folder of the weight diff, or a hub id. With a list, the base is read once for all diffs, and each result
            gets its own complete folder. If one diff does not fit, all are refused.
        path_tuned: folder to write, new or empty; with lists one for each diff. Without it the result lies beside the diff,
            under a name made from the diff's (`recovery/output_name.py`).
        dtype: type of the written weights: "float16", "bfloat16" or "float32".
        device: "auto", "cpu" or "cuda[:n]".
        resume: continue what an earlier run of the same sources and options left in `path_tuned`. Tensors whose bytes still
            hash to what that run noted are not made again. If this run fails or is interrupted, finished tensors stay.
        progress: show a progress bar on a terminal.
        force: continue where the two configs differ or the diff looks like a whole model. Shapes must agree all the same.
        hash_sources: put a SHA-256 of each source file into the manifest.
        memory_mib: MiB that the process may take at most.
        new_rows: what vocabulary rows that only the diff has are added to. "mean": the mean row of the base, as weight_diff.py
            of alpaca and open-instruct does. "zero": nothing, as FastChat's first apply_delta does (Vicuna v0, LLaVA). "auto":
            what the diff's own manifest notes, else "zero" where the diff's rows are plainly whole ones
            (`recovery/new_rows.py` explains how that is told), else "mean".
        keep_extra: store tensors that the base lacks without a sum, rounded to `dtype` (LLaVA's projector, a reward model's
            head).
        drop_rows: leave out the base's last vocabulary rows where it has more than the diff.
        follow_links: also copy config, tokenizer and licence files that are symbolic links out of their folder.
        expect_sum: the sum of all weights that the authors published for weight_diff.py's check; with lists one for each diff.
            A result whose sum is another, with and without rotary buffers, is refused at the end.
        expect_manifest: a manifest, or a folder that has one, of the same result recovered elsewhere; with lists one for each
            diff. Small tensors are compared before the long work, the others as each is finished.
        expect_sum_atol: how far the sum may be from `expect_sum`.

    Returns a Result, or a list of them where `path_diff` is a list. The manifest in the folder notes what was done of
    `new_rows`, `keep_extra` and `drop_rows`.

    Errors are raised before anything is written, where arguments and headers of files tell. An exception during the run
    removes what was written; with `resume`, not once a tensor is finished, and a BaizeWarning says what stays.

    Raises:
        RequestError: an argument is wrong.
        BackendError: the device cannot be used.
        MismatchError: base and diff do not belong together: a diff that `make_diff` wrote knows its base, and refuses another.
        CheckpointError: a file is missing or damaged.
        ConfigError: a config.json cannot be read.
        OutputError: `path_tuned` cannot take the result: it is not empty, the disk is full, or it is not writable.
    """
    options = RecoveryOptions(
        dtype=dtype,
        device=device,
        resume=resume,
        progress=progress,
        force=force,
        hash_sources=hash_sources,
        memory_mib=memory_mib,
        new_rows=new_rows,
        keep_extra=keep_extra,
        drop_rows=drop_rows,
        follow_links=follow_links,
    )
    diffs = _listed(path_diff)
    folders = all_tuned_beside(diffs) if path_tuned is None else _listed(path_tuned)
    if len(diffs) != len(folders) or not diffs:
        raise RequestError(f"path_diff names {len(diffs)} and path_tuned {len(folders)} folder(s), wanted one each")
    sums = _one_each("expect_sum", expect_sum, len(folders))
    manifests = _one_each("expect_manifest", expect_manifest, len(folders))
    requests = [
        OutputRequest(
            expect=Expectation(total, None if manifest is None else Path(manifest), expect_sum_atol),
            folder=local_path(folder),
            other=read_diff(diff),
        )
        for diff, folder, total, manifest in zip(diffs, folders, sums, manifests, strict=True)
    ]
    base = read_base(folder_of(path_raw))
    for request in requests:
        check_roles(base.index, request.other, options)
    base_mean = cache(mean_row)  # for all diffs
    results = run(base, [Output(base, request, options, base_mean) for request in requests], options)
    return results[0] if isinstance(path_diff, str | os.PathLike) else results


def _listed(given: Any) -> list[Any]:
    """A value, or several of them, as a list."""
    return [given] if isinstance(given, float | int | str | os.PathLike) else list(given)


def _one_each(name: str, given: Any, count: int) -> list[Any]:
    """An expectation, or a list of them, as a list of one for each result."""
    each = [None] * count if given is None else _listed(given)
    if len(each) != count:
        raise RequestError(f"{name} has {len(each)} value(s) for {count} result(s), wanted one each")
    return each
