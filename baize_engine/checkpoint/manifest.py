"""The manifest beside a result: what every tensor's bytes must hash to, and what they were made from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.errors import CheckpointError

MANIFEST_NAME = "baize_manifest.json"
FORMAT = "baize_manifest"
VERSION = 1


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of the result.

    `sha256` is of the stored bytes. `sum` is the float64 sum of the float32 values before they were rounded to `dtype`,
    in the fixed order that `kernels/reference.py` defines, so that it is the same number on every machine; None where
    it is not finite. `overflowed` counts finite values that became infinite in `dtype`, `nonfinite` those that were
    NaN or infinite before.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    sum: float | None
    overflowed: int
    nonfinite: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read: its name, bytes, time of last change (ns since 1970) and, if asked for, SHA-256."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    operation: str  # "recover" or "make_diff"
    backend: str
    versions: dict[str, str]
    sources: dict[str, list[SourceFile]]
    tensors: dict[str, TensorRecord]
    files: dict[str, str]  # SHA-256 of each file beside the weights
    base_rows: dict[str, str] = field(default_factory=dict)  # of a diff: SHA-256 of the base's first rows, as float32

    @property
    def sum(self) -> float:
        """The sum over all tensors, in the order of their names; NaN if one of them is not finite."""
        total = 0.0
        for name in sorted(self.tensors):
            value = self.tensors[name].sum
            total += math.nan if value is None else value
        return total

    def encode(self) -> bytes:
        return (json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n").encode()


def source_files(paths: Iterable[Path]) -> list[SourceFile]:
    """Name, size and time of each file."""
    stats = [(path.name, path.stat()) for path in paths]
    return [SourceFile(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a result: of a folder, or a file. CheckpointError if it is absent, of another version or damaged."""
    path = path / MANIFEST_NAME if path.is_dir() else path
    if not path.exists():
        raise CheckpointError(f"{path} is absent: only folders written by recover or make_diff can be verified")
    raw = strict_json.read(path)
    if raw.get("format") != FORMAT:
        raise CheckpointError(f'{path}: not a manifest of this tool (no "format": "{FORMAT}")')
    if raw.get("version") != VERSION:
        raise CheckpointError(f"{path}: manifest version {raw.get('version')!r}, wanted {VERSION}")
    try:
        return Manifest(
            operation=str(raw["operation"]),
            backend=str(raw["backend"]),
            versions=dict(raw["versions"]),
            sources={role: [_record(SourceFile, item) for item in items] for role, items in raw["sources"].items()},
            tensors={name: tensor_record(item) for name, item in raw["tensors"].items()},
            files=dict(raw["files"]),
            base_rows=dict(raw.get("base_rows", {})),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def _record(kind: Any, item: Mapping[str, Any]) -> Any:
    return kind(**{field.name: item[field.name] for field in fields(kind)})


def tensor_record(item: Mapping[str, Any]) -> TensorRecord:
    """A TensorRecord from its JSON form; KeyError or TypeError where the form is wrong."""
    record: TensorRecord = _record(TensorRecord, {**item, "shape": tuple(int(n) for n in item["shape"])})
    return record
