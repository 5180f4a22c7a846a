"""`recover`: a base and one or several published diffs become whole models, each in a new folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, overload

from baize_engine.checkpoint.base import Index, read_base
from baize_engine.checkpoint.hub import folder_of, local_path
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.errors import MismatchError, RequestError
from baize_engine.recovery.expect import Expectation, check_carried
from baize_engine.recovery.norms import norm_ratio, refuse_swapped
from baize_engine.recovery.output_name import all_tuned_beside
from baize_engine.recovery.plan import DIFF, MatchOptions, Plan
from baize_engine.recovery.published_sum import TOLERANCE
from baize_engine.recovery.result import Result
from baize_engine.recovery.run import Options, Wish, combine
from baize_engine.recovery.stream import MEMORY_MIB

FULL_MODEL = (
    0.5  # mean |norm weight| over the base's: about 1 for a model, below 0.1 for every published diff we know of
)
AnyPath = str | os.PathLike[str]


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
    """Writes base + diff to `path_tuned` and returns what was made.

    Every element is `float32(base) + float32(diff)`, rounded once to nearest even to `dtype` ("float16", "bfloat16" or
    "float32"); every NaN is the canonical quiet NaN. Rotary buffers, and others that every reader recomputes, are left out.
    Without `path_tuned` the result lies beside the diff, under a name made from its (`recovery/output_name.py`).
    `path_raw` may hold Meta's original layout; inputs may be hub ids ("owner/name") where huggingface_hub is installed.

    `path_diff` and `path_tuned` may be lists of equal length: the base is then read once for all diffs, each result gets its
    own folder with all that a single one has, and a list is returned. One diff that does not fit refuses all.

    `new_rows` says what vocabulary rows that only the diff has are added to: "mean", the mean row of the base, as
    weight_diff.py of alpaca and open-instruct does, or "zero", as FastChat's first apply_delta does (Vicuna v0, LLaVA).
    "auto" is what the diff's own manifest notes, else "zero" where the diff's rows are plainly whole ones
    (`recovery/new_rows.py` says how that is told), else "mean". `keep_extra` stores tensors that the base lacks without a sum,
    rounded to `dtype` (LLaVA's projector, a reward model's head). `drop_rows` leaves out the base's last vocabulary rows where
    it has more than the diff. `follow_links` copies config, tokenizer and licence texts also where they are links out of their
    folder. What was done of these stands in the manifest.

    `expect_sum` is the sum that the finetune's authors published for weight_diff.py's check; a result that misses it by more
    than `expect_sum_atol`, with and without rotary buffers, is refused at the end. `expect_manifest` is a manifest, or a
    folder that has one, of the same result recovered elsewhere: the small tensors are compared before the long work, the
    others as each is done. A diff that `make_diff` wrote knows its base, and refuses another. With lists, these are lists
    too, but for the tolerance.

    `device` is "auto", "cpu" or "cuda[:n]". `resume` takes up what a killed run of the same sources and options left in
    `path_tuned`: tensors whose bytes still hash to what that run noted are not redone. `force` goes on where the two
    configs differ or the diff looks like a whole model; shapes must agree all the same. `hash_sources` puts a SHA-256 of
    each source file into the manifest. The process stays below `memory_mib` MiB whatever the model's size (on a GPU torch's own
    memory comes on top). Raises MismatchError, CheckpointError, ConfigError or OutputError before anything is written where the
    files do not fit; an exception later removes what was written.
    """
    single = isinstance(path_diff, str | os.PathLike)
    diffs: list[AnyPath] = [path_diff] if isinstance(path_diff, str | os.PathLike) else list(path_diff)
    if path_tuned is None:
        path_tuned = all_tuned_beside(diffs)
    outs: list[AnyPath] = [path_tuned] if isinstance(path_tuned, str | os.PathLike) else list(path_tuned)
    if len(diffs) != len(outs) or not diffs:
        raise RequestError(f"path_diff names {len(diffs)} and path_tuned {len(outs)} folder(s), wanted one each")
    sums, manifests = _one_each("expect_sum", expect_sum, outs), _one_each("expect_manifest", expect_manifest, outs)
    expectations = [
        Expectation.of(total, manifest, expect_sum_atol) for total, manifest in zip(sums, manifests, strict=True)
    ]
    base = read_base(folder_of(path_raw))
    indexes = [read_index(folder_of(path)) for path in diffs]
    if not force:
        for diff in indexes:
            refuse_swapped(base.index, diff, DIFF)
    wishes = [
        Wish(diff, local_path(out), check_diff(base.index, diff, force), expect)
        for diff, out, expect in zip(indexes, outs, expectations, strict=True)
    ]
    match = MatchOptions(new_rows, keep_extra, drop_rows, force)
    results = combine(
        base, wishes, Options(dtype, device, resume, progress, hash_sources, memory_mib, match, follow_links)
    )
    return results[0] if single else results


def _one_each(name: str, given: Any, outs: list[AnyPath]) -> list[Any]:
    """An expectation for each result."""
    if given is None:
        return [None] * len(outs)
    each = [given] if isinstance(given, float | int | str | os.PathLike) else list(given)
    if len(each) != len(outs):
        raise RequestError(f"{name} has {len(each)} value(s) for {len(outs)} result(s), wanted one each")
    return each


def check_diff(base: Index, diff: CheckpointIndex, force: bool) -> Callable[[Plan], None]:
    """What may refuse the plan of a diff: that it looks like a whole model, or knows another base."""

    def check(work: Plan) -> None:
        if force:
            return
        ratio = norm_ratio(work)
        if ratio >= FULL_MODEL:
            raise MismatchError(
                f"{diff.folder} looks like a whole model, not a weight diff: its norm weights are {ratio:.2f} times as large "
                f"as the base's, wanted below {FULL_MODEL} (--force goes on)"
            )
        check_carried(work, base, diff)

    return check
