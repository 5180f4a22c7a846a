"""JSON objects from untrusted files: bounded in size, and every failure a CheckpointError.

Files that say where bytes lie (headers of safetensors, indexes of shards, manifests) must have one meaning: `read` and `parse`
refuse duplicate keys and numbers that are not finite. Settings (config.json and the files beside a tokenizer) are mostly
written by others, and `read_settings` reads them as Python's json, and so transformers, does.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief, kind, shown

MAX_BYTES = 8 << 20  # the index of a 65B model has about 100 KB; as Python objects, 20 times as much
MAX_DIGITS = 4300  # of an integer, Python's own default; published files have up to 31 (model_max_length int(1e30))


def read(path: Path) -> dict[str, Any]:
    """Read the object in a file of at most MAX_BYTES, strictly, as `parse` does."""
    return parse(_content(path), str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Read the object in a settings file of at most MAX_BYTES. Of duplicate keys the last counts.

    Numbers may be inf or nan: check a number before you use it.
    """
    return parse_settings(_content(path), str(path))


def parse_settings(content: bytes, what: str) -> dict[str, Any]:
    """Parse the object in `content` as `read_settings` does. CheckpointError names `what`."""
    return _parse(content, what)


def parse(content: bytes, what: str) -> dict[str, Any]:
    """Parse the object in `content`. CheckpointError names `what`, also for duplicate keys and numbers that are not finite."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{what}: the key {brief(key)} appears twice")
            found[key] = value
        return found

    return _parse(content, what, object_pairs_hook=unique, parse_float=_finite, parse_constant=_finite)


def _content(path: Path) -> bytes:
    return read_whole(path, MAX_BYTES, " of JSON")


def _parse(content: bytes, what: str, **hooks: Any) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_int=_integer, **hooks)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: not JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: {kind(value)}, wanted a JSON object")
    return value


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_DIGITS:
        raise ValueError(f"a number of {digits} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"a number that is not finite: {text[:40]}")
    return value


def whole_line(line: bytes) -> dict[str, Any]:
    """The object in a line of one of our own files; {} if it is incomplete, because a run was killed while writing it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
