"""The folder that is given as a weight diff."""

from __future__ import annotations

import os

from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.errors import CheckpointError
from baize_engine.recovery.xor.payload import is_payload


def read_diff(path: str | os.PathLike[str]) -> CheckpointIndex:
    """The tensors of a diff, a folder or a hub id. CheckpointError names `baize xor` if the folder holds XOR files."""
    folder = folder_of(path)
    try:
        return read_index(folder)
    except CheckpointError as error:
        if is_payload(folder):
            remedy = f"baize xor --path_raw BASE --path_payload {folder} --path_tuned OUT"
            raise CheckpointError(f"{folder} holds XOR files, not a weight diff: {remedy} ({error})") from None
        raise
