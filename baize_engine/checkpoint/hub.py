"""Hub ids, "owner/name", in place of folders: fetched by huggingface_hub, which is optional (the extra `hub`).

An existing folder always takes precedence. huggingface_hub keeps its own cache and uses it when offline (HF_HUB_OFFLINE=1, or
no connection). Only files that this project reads are fetched.
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
# (file whose presence shows a kind of weights, what to fetch for it), in the order in which a folder is read
WEIGHTS = (
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("model.safetensors", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("params.json", "consolidated.*.pth"),
    ("model-*-of-*.safetensors", "model-*-of-*.safetensors"),  # shards without an index
    ("pytorch_model-*-of-*.bin", "pytorch_model-*-of-*.bin"),
)


def local_path(path: str | os.PathLike[str]) -> Path:
    """`path` with "~" expanded.

    RequestError if it is empty, which would mean the current folder, or names the home of an unknown user, which would mean a
    folder called "~name".
    """
    if not os.fspath(path):
        raise RequestError("an empty path, wanted a folder or a hub id")
    expanded = os.path.expanduser(os.fspath(path))
    home = expanded.partition("/")[0]
    if home.startswith("~") and not os.path.lexists(home):
        raise RequestError(f"{path}: there is no home folder {home} (./{expanded} names a folder called that)")
    return Path(expanded)


def folder_of(path: str | os.PathLike[str], patterns: Sequence[str] | None = None) -> Path:
    """The folder `path`, or the local folder of a hub id's files, which are fetched if need be.

    A path that exists, even as a broken link, or whose parent exists is no hub id. A path that is neither is returned as it
    is.

    patterns: glob patterns of the files to fetch; None: the side files and one kind of weights.
    Raises CheckpointError, with the remedy, if the files cannot be fetched or hold no weights.
    """
    folder = local_path(path)
    there = os.path.lexists(folder) or os.path.lexists(folder.parent)
    if there or not isinstance(path, str) or not _ID.fullmatch(path):
        return folder
    if find_spec("huggingface_hub") is None:
        remedy = "if it is a hub id, install huggingface_hub (pip install 'baize-engine[hub]')"
        raise CheckpointError(f"{path} does not exist; {remedy}")
    import huggingface_hub

    return _fetch(huggingface_hub, path) if patterns is None else _snapshot(huggingface_hub, path, list(patterns))


def _fetch(hub: ModuleType, name: str) -> Path:
    """Fetch the repository's side files and one kind of weights; return their folder."""
    folder = _snapshot(hub, name, SIDE_FILES)
    for marker, pattern in WEIGHTS:
        if marker.endswith(".json") and not (folder / marker).exists():  # it would have come with the side files
            continue
        folder = _snapshot(hub, name, [*SIDE_FILES, pattern])
        if next(folder.glob(marker), None) is not None:
            return folder
    raise CheckpointError(f"{name}, in {folder}, holds no weights: looked for {', '.join(m for m, _ in WEIGHTS)}")


def _snapshot(hub: ModuleType, name: str, patterns: list[str]) -> Path:
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # also huggingface_hub's own errors: HTTP, not in the cache, a bad name
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{name} is not a folder here, and huggingface_hub could not fetch it: {reason}"
        ) from error
