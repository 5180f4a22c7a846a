"""The manifest beside a result: the hash of every tensor's bytes, and the files that it was made from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.os_errors import broken_link, reading
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief, shown

MANIFEST_NAME = "baize_manifest.json"
RECOVER, MAKE_DIFF, XOR = "recover", "make_diff", "xor"  # operations; xor's manifests list whole files
FORMAT = "baize_manifest"
VERSION = 1


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of the result.

    `sha256` is of the stored bytes. `sum` is the float64 sum of the float32 values before they were rounded to `dtype`, in the
    fixed order that `kernels/reference.py` defines, and so the same on every machine; None if it is not finite.
    `overflowed` counts finite values that became infinite in `dtype`, `nonfinite` values that were NaN or infinite before.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    sum: float | None
    overflowed: int
    nonfinite: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read: its name, size in bytes, modification time (ns since 1970) and, if asked for, SHA-256."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """How a result was made, and what it holds."""

    operation: str  # RECOVER, MAKE_DIFF or XOR
    backend: str
    versions: dict[str, str]
    sources: dict[str, list[SourceFile]]
    tensors: dict[str, TensorRecord]
    files: dict[str, str]  # name -> SHA-256 of the files beside the weights; of every file for "xor"
    base_rows: dict[str, str] = field(default_factory=dict)  # of a diff: SHA-256 of the base's first rows, as float32
    # what new vocabulary rows were added to: "mean" (the base's mean row) or "zero"; "none": no new rows; "": unknown
    new_rows: str = ""
    stored: list[str] = field(default_factory=list)  # tensors that the base lacks, stored unchanged
    notes: list[str] = field(default_factory=list)  # what was done besides the sum, and why

    @property
    def sum(self) -> float:
        """The sum over all tensors, added in the order of their names; NaN if one of them is not finite."""
        total = 0.0
        for name in sorted(self.tensors):
            value = self.tensors[name].sum
            total += math.nan if value is None else value
        return total

    def encode(self) -> bytes:
        """The content of the manifest's file."""
        return (json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n").encode()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest from its file, or from a result's folder. CheckpointError if absent, of another version or damaged."""
    with reading(path):
        path = path / MANIFEST_NAME if path.is_dir() else path
        there = path.exists()
    if not there:
        reason = f"{path} does not exist, wanted a folder with a manifest, or a manifest"
        if path.name == MANIFEST_NAME:
            reason = f"{path} is absent: only folders written by recover, make_diff or xor can be verified"
        raise CheckpointError(broken_link(path) or reason)
    raw = strict_json.read(path)
    if raw.get("format") != FORMAT:
        raise CheckpointError(f'{path}: not a manifest of this tool (no "format": "{FORMAT}")')
    if raw.get("version") != VERSION:
        raise CheckpointError(f"{path}: manifest version {brief(raw.get('version'))}, wanted {VERSION}")
    try:
        return Manifest(
            operation=str(raw["operation"]),
            backend=str(raw["backend"]),
            versions=_strings(raw["versions"]),
            sources={role: [_record(SourceFile, item) for item in items] for role, items in raw["sources"].items()},
            tensors={name: tensor_record(item) for name, item in raw["tensors"].items()},
            files=_strings(raw["files"]),
            base_rows=_strings(raw.get("base_rows", {})),
            new_rows=_new_rows(raw.get("new_rows", "")),
            stored=list(map(_string, raw.get("stored", []))),
            notes=list(map(_string, raw.get("notes", []))),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {shown(str(error))})") from None


# the exact types of the fields of records; a bool is no number
_KINDS: dict[str, tuple[type, ...]] = {
    "dtype": (str,), "shape": (tuple,), "sum": (float, int, type(None)), "overflowed": (int,), "nonfinite": (int,),
    "name": (str,), "bytes": (int,), "mtime_ns": (int,), "sha256": (str, type(None)),
}  # fmt: skip
_WORDS: dict[type, str] = {str: "a string", tuple: "a list", float: "a number", int: "an integer"}


def _record(kind: Any, item: Mapping[str, Any]) -> Any:
    """A `kind`, TensorRecord or SourceFile, with the fields in `item`. KeyError or TypeError if one is absent or wrong."""
    values = {field.name: item[field.name] for field in fields(kind)}
    for name, value in values.items():
        if type(value) not in _KINDS[name] or (type(value) is int and abs(value) >= 1 << 63):
            raise TypeError(f"{name} is {brief(value)}, wanted {_WORDS[_KINDS[name][0]]}")
    return kind(**values)


def _string(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"{brief(raw)}, wanted a string")
    return raw


def _new_rows(raw: Any) -> str:
    if raw not in ("", "none", "mean", "zero"):
        raise TypeError(f"new_rows is {brief(raw)}, wanted none, mean or zero")
    return str(raw)


def _strings(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise TypeError(f"{brief(raw)}, wanted an object of strings")
    return raw


def tensor_record(item: Mapping[str, Any]) -> TensorRecord:
    """A TensorRecord from its JSON form. KeyError or TypeError if the form is wrong."""
    shape = item["shape"]
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise TypeError(f"shape is {brief(shape)}, wanted natural numbers")
    record: TensorRecord = _record(TensorRecord, {**item, "shape": tuple(shape)})
    return record
