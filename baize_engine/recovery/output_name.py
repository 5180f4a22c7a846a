"""The default folder of a result: beside the diff, the XOR files or the finetuned model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from baize_engine.errors import RequestError

AnyPath = str | os.PathLike[str]
# A part of a published name that says "this is a diff": baize-13b-diff, alpaca-7b-wdiff, vicuna-13b-delta-v1.1, x_weight_diff;
# or "these are XOR files": oasst-sft-6-llama-30b-xor, xor_encoded_files (Pygmalion), BELLE-LLAMA-EXT-7B-enc.
_MARK = re.compile(
    r"(?i)(?:^|[-_.])(?:weight[-_]?diff|weight[-_]?delta|delta[-_]?weights?|wdiff|diff|delta"
    r"|xor[-_]encoded[-_]files|xors?|enc)(?=$|[-_.])"
)
# in huggingface_hub's cache a model's own folder is named by a hash
_HUB_CACHE = re.compile(r"models--[^/]+?--([^/]+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*")


def tuned_beside(path_diff: AnyPath) -> Path:
    """The folder for the model that a diff gives: open-instruct-baize-13b-diff/ gives open-instruct-baize-13b-recovered/.

    It lies beside the diff, or the payload of XOR files; for a hub id, or a folder of huggingface_hub's cache, in the current
    folder. RequestError where the path has no name, such as "/".
    """
    folder = _place(path_diff)
    return folder.with_name(_short(folder.name) + "-recovered")


def diff_beside(path_tuned: AnyPath) -> Path:
    """The folder for the diff of a finetuned model: baize-13b/ gives baize-13b-diff/. Errors as for `tuned_beside`."""
    folder = _place(path_tuned)
    return folder.with_name(folder.name + "-diff")


def all_tuned_beside(path_diffs: Sequence[AnyPath]) -> list[Path]:
    """`tuned_beside` of each; those that would share a folder keep their whole names (x-diff and x-delta)."""
    folders = [tuned_beside(path) for path in path_diffs]
    return [
        out if folders.count(out) == 1 else (place := _place(path)).with_name(place.name + "-recovered")
        for path, out in zip(path_diffs, folders, strict=True)
    ]


def _short(name: str) -> str:
    """`name` without its last mark, or all of it where nothing else would be left."""
    marks = list(_MARK.finditer(name))
    if not marks:
        return name
    rest = (name[: marks[-1].start()] + name[marks[-1].end() :]).strip("-_.")
    return rest or name


def _place(path: AnyPath) -> Path:
    """A path with the name and parent of the folder, links not followed; for a hub id, its name alone."""
    text, folder = os.fspath(path), Path(path)
    whole = Path(os.path.abspath(folder))
    if not whole.name:
        raise RequestError(
            f"{text} has no name to call a result after, wanted --path_tuned or --path_diff for what is written"
        )
    if whole.parent.name == "snapshots" and (cached := _HUB_CACHE.fullmatch(whole.parent.parent.name)):
        return Path(cached[1])
    if _HUB_ID.fullmatch(text) and not folder.exists():
        return Path(folder.name)
    return whole if folder.name in ("", "..") else folder
