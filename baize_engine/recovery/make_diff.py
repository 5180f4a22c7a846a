"""`make_diff`: the inverse of `recover`, for those who publish a finetune as base + diff."""

from __future__ import annotations

import os

from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.hub import folder_of, local_path
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import MismatchError
from baize_engine.recovery.norms import norm_ratio, refuse_swapped
from baize_engine.recovery.output_name import diff_beside
from baize_engine.recovery.plan import MatchOptions, Plan
from baize_engine.recovery.recover import FULL_MODEL
from baize_engine.recovery.result import Result
from baize_engine.recovery.run import Options, Wish, combine
from baize_engine.recovery.stream import MEMORY_MIB


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
    """Writes tuned - base to `path_diff` and returns what was made.

    Every element is `float32(tuned) - float32(base)`, rounded once to `dtype`. Vocabulary rows that only the tuned model
    has lose the mean row of the base, or with `new_rows` "zero" nothing; the manifest says which, so that `recover` brings
    them back. `dtype` "float32" is what was published in 2023; the 16-bit types halve the size and round the differences.
    Without `path_diff` the folder lies beside the tuned model's. Arguments, memory and errors as for `recover`.
    """
    base, tuned = read_base(folder_of(path_raw)), read_index(folder_of(path_tuned))
    if not force:
        refuse_swapped(base.index, tuned, "tuned model")

    def check(work: Plan) -> None:
        ratio = norm_ratio(work)
        if ratio < FULL_MODEL and not force:
            raise MismatchError(
                f"{tuned.folder} looks like a weight diff already: its norm weights are {ratio:.2f} times as large as the "
                f"base's, wanted at least {FULL_MODEL} (--force goes on)"
            )

    match = MatchOptions(new_rows, keep_extra, drop_rows, force)
    options = Options(dtype, device, resume, progress, hash_sources, memory_mib, match, follow_links, subtract=True)
    out = diff_beside(path_tuned) if path_diff is None else local_path(path_diff)
    (result,) = combine(base, [Wish(tuned, out, check)], options)
    return result
