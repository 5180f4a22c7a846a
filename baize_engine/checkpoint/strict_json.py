"""JSON objects from untrusted files: bounded in size, and every failure a CheckpointError.

Files that say where bytes lie (headers of safetensors, indexes of shards, manifests) must have one meaning: `read` and `parse`
refuse duplicate keys and numbers that are not finite. Settings (config.json and the files beside a tokenizer) are mostly
written by others: with `strict` unset, they are read as Python's json, and so transformers, does. Of duplicate keys the last
counts, and numbers may be inf or nan: check a number before you use it.
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


def read(path: Path, strict: bool = True) -> dict[str, Any]:
    """Read the object in a file of at most MAX_BYTES, as `parse` does."""
    return parse(read_whole(path, MAX_BYTES, " of JSON"), str(path), strict)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the object in a settings file of at most MAX_BYTES, not strictly."""
    return read(path, strict=False)


def parse(content: bytes, what: str, strict: bool = True) -> dict[str, Any]:
    """Parse the object in `content`. CheckpointError names `what`; with `strict`, also for duplicate keys and inf or nan."""
    hooks: dict[str, Any] = {"object_pairs_hook": _unique, "parse_float": _finite, "parse_constant": _finite}
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_int=_integer, **(hooks if strict else {}))
    except CheckpointError as error:  # of `_unique`
        raise CheckpointError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: not JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: {kind(value)}, wanted a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise CheckpointError(f"the key {brief(key)} appears twice")
        found[key] = value
    return found


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
