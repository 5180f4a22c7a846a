"""JSON objects from files of strangers: bounded, no duplicate keys, and every failure a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baize_engine.errors import CheckpointError

MAX_BYTES = 64 << 20  # an index of a 65B model is some 100 KB


def read(path: Path) -> dict[str, Any]:
    """The object in a file of at most MAX_BYTES."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, wanted at most {MAX_BYTES} of JSON")
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is absent") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, wanted a file") from None
    return parse(content, str(path))


def parse(content: bytes, what: str) -> dict[str, Any]:
    """The object in `content`; CheckpointError names `what`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{what}: the key {twice!r} stands there twice")
        return found

    try:
        value = json.loads(content, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: a {type(value).__name__}, wanted a JSON object")
    return value
