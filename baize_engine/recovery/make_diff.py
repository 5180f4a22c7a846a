"""`make_diff`: the inverse of `recover`, for those who publish a finetune as base + diff."""

from __future__ import annotations

import os

from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.hub import folder_of, local_path
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import MAKE_DIFF
from baize_engine.recovery.checks import check_roles
from baize_engine.recovery.memory import MEMORY_MIB
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.output import Output, OutputRequest
from baize_engine.recovery.output_name import diff_beside
from baize_engine.recovery.result import Result
from baize_engine.recovery.run import run
from baize_engine.recovery.vocabulary_growth import mean_row


def make_diff(
    path_raw: str | os.PathLike[str],
    path_tuned: str | os.PathLike[str],
    path_diff: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
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
) -> Result:
    """Writes tuned - base to a new folder and returns what was made.

    Every element is `float32(tuned) - float32(base)`, rounded once to `dtype`. The arguments that are not listed, the memory
    and the errors are those of `recover`.

    Arguments:
        path_tuned: folder of the finetuned model, or a hub id.
        path_diff: folder to write, new or empty. Default: beside the finetuned model.
        dtype: type of the written differences. "float32" is what was published in 2023; the 16-bit types halve the size and
            round the differences.
        force: continue where the two configs differ or the finetuned model looks like a diff.
        new_rows: what is subtracted from vocabulary rows that only the finetuned model has: the base's mean row ("mean",
            "auto") or nothing ("zero"). The manifest records which, so that `recover` restores the rows.
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
        operation=MAKE_DIFF,
    )
    base, tuned = read_base(folder_of(path_raw)), read_index(folder_of(path_tuned))
    check_roles(base.index, tuned, options)
    folder = diff_beside(path_tuned) if path_diff is None else local_path(path_diff)
    (result,) = run(base, [Output(base, OutputRequest(tuned, folder), options, mean_row)], options)
    return result
