"""A hub id, "owner/name", in place of a folder: the repository's files by huggingface_hub (the extra `hub`), which is optional.

A folder that exists always comes first. huggingface_hub keeps its own cache and falls back to it when it is offline
(HF_HUB_OFFLINE=1, or no connection). Of a repository only the files that this project reads are fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from baize_engine.errors import CheckpointError, RequestError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SIDE_FILES = ["*.json", "tokenizer.model", "*.jinja", "*.txt", "*LICENSE*", "*NOTICE*", "*USE_POLICY*"]
# In the order in which a folder is read: the index or single file, and what to fetch where it is there.
WEIGHTS = (
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("model.safetensors", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("params.json", "consolidated.*.pth"),
)
SHARDS_ALONE = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")  # without an index


def local_path(path: str | os.PathLike[str]) -> Path:
    """`path` with "~" as the user's home. RequestError where it is empty, which would be the current folder."""
    if not os.fspath(path):
        raise RequestError("an empty path, wanted a folder or a hub id")
    return Path(os.path.expanduser(path))


def folder_of(path: str | os.PathLike[str], patterns: Sequence[str] | None = None) -> Path:
    """`path` itself, or for a hub id the folder of its files. CheckpointError says what is missing, and the remedy.

    What begins with a folder that is here, and a link, is a path and no hub id. Of a repository come the side files and one
    kind of weights, or what matches `patterns` if they are given.
    """
    folder = local_path(path)
    if (
        not isinstance(path, str)
        or os.path.lexists(folder)
        or not _ID.fullmatch(path)
        or os.path.lexists(folder.parent)
    ):
        return folder
    if find_spec("huggingface_hub") is None:
        raise CheckpointError(
            f"{path} does not exist; if it is a hub id, install huggingface_hub (pip install 'baize-engine[hub]')"
        )
    import huggingface_hub

    return _fetch(huggingface_hub, path) if patterns is None else _snapshot(huggingface_hub, path, list(patterns))


def _fetch(hub: ModuleType, name: str) -> Path:
    """The repository's snapshot with its side files and one kind of weights."""
    found = _snapshot(hub, name, SIDE_FILES)
    for marker, pattern in WEIGHTS:
        if marker.endswith(".json") and not (found / marker).exists():  # it would have come with the side files
            continue
        found = _snapshot(hub, name, [*SIDE_FILES, pattern])
        if (found / marker).exists():
            return found
    for pattern in SHARDS_ALONE:
        found = _snapshot(hub, name, [*SIDE_FILES, pattern])
        if next(found.glob(pattern), None) is not None:
            return found
    raise CheckpointError(f"{name}, in {found}, holds no weights: looked for {', '.join(m for m, _ in WEIGHTS)}")


def _snapshot(hub: ModuleType, name: str, patterns: list[str]) -> Path:
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # what huggingface_hub's own errors are: HTTP, not in the cache, a bad name
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name} is no folder here, and huggingface_hub could not bring it: {reason or type(error).__name__}"
        ) from error
