"""JSON objects from files of strangers: bounded, and every failure a CheckpointError.

What says where bytes lie (headers of safetensors, indexes of shards, manifests) has one meaning: `read` and `parse` refuse
a key that stands there twice and numbers that are not finite. Settings (config.json and the files beside a tokenizer) are
mostly not ours, and are read as Python's json, and so transformers, reads them: `read_settings`.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief, kind, shown

MAX_BYTES = 8 << 20  # an index of a 65B model is some 100 KB; as objects, 20 times as much
MAX_DIGITS = 4300  # of an integer: Python's own default; published files have 31 (a model_max_length of int(1e30))


def read(path: Path) -> dict[str, Any]:
    """The object in a file of at most MAX_BYTES, as `parse` reads it."""
    return parse(_content(path), str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a settings file of at most MAX_BYTES: of equal keys the last counts, and numbers may be inf or nan.

    Who uses a number looks first whether it is finite.
    """
    return parse_settings(_content(path), str(path))


def parse_settings(content: bytes, what: str) -> dict[str, Any]:
    """The object in `content`, as `read_settings` reads it; CheckpointError names `what`."""
    return _parse(content, what)


def parse(content: bytes, what: str) -> dict[str, Any]:
    """The object in `content`; CheckpointError names `what`. Numbers are finite, and no key stands there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(f"{what}: the key {brief(name)} stands there twice")
            found[name] = value
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
    """The object that a line of our own files is, or {} where it is torn: a run was killed while it wrote it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
