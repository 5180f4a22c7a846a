"""One index over a folder of weights: name -> type, shape, file, byte offset. Reads headers only.

A folder holds `model.safetensors` or `pytorch_model.bin`, or shards of either with their `.index.json`. Where both kinds
are there, safetensors is read, as transformers does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.entry import TensorEntry, check_count
from baize_engine.checkpoint.os_errors import reading, stat_of
from baize_engine.checkpoint.safetensors_file import read_safetensors
from baize_engine.checkpoint.shown import brief, shown
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import CheckpointError

MAX_FILE_NAME = 255  # bytes, what file systems take
KINDS = (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch))


@dataclass(frozen=True)
class CheckpointIndex:
    """The tensors of a folder by name, and the files that hold them, each as it was before its header was read."""

    folder: Path
    entries: dict[str, TensorEntry]
    stats: dict[Path, os.stat_result]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.stats)


def read_index(folder: str | os.PathLike[str]) -> CheckpointIndex:
    """The index of `folder`. CheckpointError says what was looked for and not found, or which file lies how."""
    with reading(folder):
        return _read_index(Path(folder))


def _read_index(folder: Path) -> CheckpointIndex:
    _refuse_other_things(folder)
    for single, reader in KINDS:
        index = folder / f"{single}.index.json"
        if index.exists():
            weight_map = _weight_map(index)
            files = tuple(folder / name for name in sorted(set(weight_map.values())))
            check_count(index, len(weight_map))
            _check_present(index, files)
            stats = {file: stat_of(file) for file in files}
            entries = _merge(entry for file in files for entry in reader(file))
            _check_map(index, weight_map, entries)
            return CheckpointIndex(folder, entries, stats)
        if (folder / single).exists():
            stats = {folder / single: stat_of(folder / single)}
            return CheckpointIndex(folder, _merge(reader(folder / single)), stats)
    wanted = ", ".join(f"{single} or {single}.index.json" for single, _ in KINDS)
    raise CheckpointError(f"{folder} holds no weights: looked for {wanted}{_hint(folder)}")


def _refuse_other_things(folder: Path) -> None:
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist, wanted a folder with a model's files")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, wanted a folder with a model's files")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} has adapter_config.json: it is a LoRA adapter, not weights or a weight diff; merge it with peft"
        )


def _hint(folder: Path) -> str:
    if any(folder.glob("consolidated.*.pth")):
        return (
            "; its consolidated.*.pth are Meta's original layout, which recover and make_diff take as a base; "
            "for anything else convert it with transformers' convert_llama_weights_to_hf.py"
        )
    names = sorted(path.name for path in folder.iterdir())
    return (
        f"; it has {', '.join(map(shown, names[:5]))}{' and more' if len(names) > 5 else ''}"
        if names
        else "; it is empty"
    )


def _weight_map(index: Path) -> dict[str, str]:
    found = strict_json.read(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{index}: weight_map is {type(found).__name__}, wanted an object of tensor names to files"
        )
    for name, file in found.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and file not in ("", ".", "..")
        if not plain or "\\" in file or not file.isprintable() or len(file.encode()) > MAX_FILE_NAME:
            raise CheckpointError(
                f"{index}: {shown(name)} is said to be in {brief(file)}, wanted the name of a file in this folder"
            )
    return found


def _check_present(index: Path, files: tuple[Path, ...]) -> None:
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:5])}"
        )


def _merge(entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    merged: dict[str, TensorEntry] = {}
    for entry in entries:
        other = merged.setdefault(entry.name, entry)
        if other is not entry:
            raise CheckpointError(f"{entry.path}: {entry.name} is also in {other.path.name}, wanted it once")
        check_count(entry.path.parent, len(merged))
    return merged


def _check_map(index: Path, weight_map: dict[str, str], entries: dict[str, TensorEntry]) -> None:
    for name, file in weight_map.items():
        if name not in entries:
            raise CheckpointError(f"{index}: {shown(name)} is said to be in {file}, and no shard has it")
        if entries[name].path.name != file:
            raise CheckpointError(
                f"{index}: {shown(name)} is said to be in {file}, and is in {entries[name].path.name}"
            )
    extra = [entry for name, entry in entries.items() if name not in weight_map]
    if extra:
        raise CheckpointError(f"{index}: {extra[0].path.name} holds {extra[0].name}, which the index does not name")


__all__ = ["CheckpointIndex", "TensorEntry", "read_index"]
