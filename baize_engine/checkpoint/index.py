"""The index of a folder of weights: name -> type, shape, file, byte offset. Reads headers only.

A folder holds `model.safetensors`, or `pytorch_model.bin`, or shards of either: with an `.index.json`, or without one if the
shards' names show that none is missing. If both kinds are present, safetensors is read, as in transformers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.entry import Entry, TensorEntry, check_count
from baize_engine.checkpoint.names import is_recomputed
from baize_engine.checkpoint.os_errors import broken_link, reading, stat_of
from baize_engine.checkpoint.other_layouts import hint_of_other_layouts
from baize_engine.checkpoint.safetensors_file import read_safetensors
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief, kind, shown

MAX_FILE_NAME = 255  # bytes, the limit of file systems
Reader = Callable[[Path], list[TensorEntry]]
KINDS: tuple[tuple[str, Reader], ...] = (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch))
# files by which a folder of weights is recognised
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*model*.index.json", "consolidated.*.pth")
MOST_FOLDERS = 64  # inner folders that are searched for weights, for a message


@dataclass(frozen=True)
class Index:
    """The tensors of a folder by name. `stats`: the files that hold them, as they were before their headers were read."""

    folder: Path
    entries: Mapping[str, Entry]
    stats: Mapping[Path, os.stat_result]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.stats)


@dataclass(frozen=True)
class CheckpointIndex(Index):
    """The index of a folder in transformers' layout, which stores every tensor in one piece."""

    entries: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class _Found:
    """The files of weights of a folder: its `index` or else its only file or its `shards`. `fault`: why they are no model."""

    reader: Reader
    index: Path | None = None
    shards: tuple[Path, ...] = ()
    fault: str | None = None


def read_index(folder: str | os.PathLike[str]) -> CheckpointIndex:
    """Read the index of `folder`. CheckpointError says what was looked for and not found, or what is wrong in which file."""
    folder = Path(folder)
    with reading(folder):
        _refuse_other_things(folder)
        found = _find(folder)
        if found is None:
            wanted = ", ".join(f"{single} or {single}.index.json" for single, _ in KINDS)
            raise CheckpointError(f"{folder} holds no weights: looked for {wanted}{_hint(folder)}")
        if found.fault:
            raise CheckpointError(f"{folder} has {found.fault}")
        if found.index is None:
            return _read_files(folder, found.shards, found.reader)
        weight_map = _weight_map(found.index)
        check_count(found.index, len(weight_map))
        needed = {file for name, file in weight_map.items() if not is_recomputed(name)}
        _check_present(found.index, [folder / name for name in sorted(needed)])
        files = [folder / name for name in sorted(set(weight_map.values()))]
        checkpoint = _read_files(folder, [file for file in files if file.exists()], found.reader)
        _check_map(found.index, weight_map, checkpoint.entries)
        return checkpoint


def _read_files(folder: Path, files: Sequence[Path], reader: Reader) -> CheckpointIndex:
    stats = {file: stat_of(file) for file in files}
    return CheckpointIndex(folder, _merge(entry for file in files for entry in reader(file)), stats)


def holds_model(folder: Path) -> bool:
    """Whether `read_index` would find weights in `folder`, right or wrong."""
    found = _find(folder)
    return found is not None and found.fault is None


def _find(folder: Path) -> _Found | None:
    """The files of weights in `folder`. Incomplete shards come last: an abandoned download must not hide a complete model."""
    for single, reader in KINDS:
        index = folder / f"{single}.index.json"
        if os.path.lexists(index):
            return _Found(reader, index)
        if os.path.lexists(folder / single):
            return _Found(reader, shards=(folder / single,))
    alone = [_shards_by_name(folder, single, reader) for single, reader in KINDS]
    return min((found for found in alone if found.shards), key=lambda found: found.fault is not None, default=None)


def _shards_by_name(folder: Path, single: str, reader: Reader) -> _Found:
    """The shards of `folder` by their names, model-00001-of-00002.safetensors, as no index lists them."""
    stem, suffix = os.path.splitext(single)
    shard = re.compile(rf"{re.escape(stem)}-(\d{{1,6}})-of-(\d{{1,6}}){re.escape(suffix)}", re.ASCII)
    shards = {path: match for path in sorted(folder.iterdir()) if (match := shard.fullmatch(path.name))}
    names = {int(match[2]): path.name for path, match in shards.items()}  # an example of each count
    fault = None
    if len(names) > 1:
        which = " and ".join(list(names.values())[:3])
        fault = f"shards of different sets, {which}, and no {single}.index.json that says which are meant: remove the others"
    for count, name in names.items() if not fault else ():
        numbers = {int(match[1]) for match in shards.values()}
        missing = next((number for number in range(1, count + 1) if number not in numbers), None)
        if missing is not None:
            fault = f"{len(shards)} shard(s) such as {name}, and shard {missing} of {count} is missing (no {single}.index.json)"
        elif len(shards) != count:
            fault = f"{len(shards)} shards such as {name}, and {count} are wanted (no {single}.index.json says which)"
    return _Found(reader, shards=tuple(shards), fault=fault)


def _refuse_other_things(folder: Path) -> None:
    """Raise CheckpointError if `folder` is no folder, or holds an adapter."""
    if not folder.exists():
        raise CheckpointError(broken_link(folder) or f"{folder} does not exist, wanted a folder with a model's files")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, wanted a folder with a model's files")
    if (folder / "adapter_config.json").exists():
        found = f"{folder} has adapter_config.json: it is a LoRA adapter"
        raise CheckpointError(f"{found}, not weights or a weight diff; merge it with peft")


def _hint(folder: Path) -> str:
    """The end of a message about `folder`, which has no weights: what it has, and a remedy if one is known."""
    if any(folder.glob("consolidated.*.pth")):
        hint = "its consolidated.*.pth are Meta's original layout, which recover and make_diff take as a base; "
        return f"; {hint}for anything else convert it with transformers' convert_llama_weights_to_hf.py"
    inside = _folders_with_weights(folder)
    if inside:
        holds = "holds" if len(inside) == 1 else "hold"
        return f"; {' and '.join(map(str, inside[:2]))} inside it {holds} some: name that folder instead"
    known = hint_of_other_layouts(folder)
    if known:
        return f"; {known}"
    names = sorted(path.name for path in folder.iterdir())
    more = " and more" if len(names) > 5 else ""
    return f"; it has {', '.join(map(shown, names[:5]))}{more}" if names else "; it is empty"


def _folders_with_weights(folder: Path) -> list[Path]:
    """Folders with weights up to two levels below `folder`, as an unpacked archive or a hub's cache has them."""
    inner = _folders_in(folder)
    inner += [below for child in inner for below in _folders_in(child)]
    return [path for path in inner[:MOST_FOLDERS] if any(next(path.glob(pattern), None) for pattern in WEIGHTS)]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isprintable())[:MOST_FOLDERS]
    except PermissionError:
        return []


def _weight_map(index: Path) -> dict[str, str]:
    """The checked tensor name -> file name of an index file."""
    weight_map = strict_json.read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is {kind(weight_map)}, wanted an object of tensor names to files")
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and file not in ("", ".", "..")
        if not plain or "\\" in file or not file.isprintable() or len(file.encode()) > MAX_FILE_NAME:
            where = f"{index}: {shown(name)} is said to be in {brief(file)}"
            raise CheckpointError(f"{where}, wanted the name of a file in this folder")
    return weight_map


def _check_present(index: Path, files: Sequence[Path]) -> None:
    missing = [file for file in files if not file.exists()]
    if not missing:
        return
    if broken := broken_link(missing[0]):
        raise CheckpointError(f"{broken} ({len(missing)} of {len(files)} shards cannot be read)")
    reason = f"{len(missing)} of {len(files)} shards are missing: {', '.join(file.name for file in missing[:5])}"
    if len(missing) == len(files):
        reason = f"{index.name} is there, but none of its {len(files)} shards is: {missing[0].name} and so on"
        there = [path.name for pattern in WEIGHTS for path in index.parent.glob(pattern) if path.suffix != ".json"]
        if there:
            more = " and more" if len(there) > 2 else ""
            reason += f"; {', '.join(map(shown, sorted(there)[:2]))}{more} would be read without that index"
    raise CheckpointError(f"{index.parent}: {reason}")


def _merge(entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    merged: dict[str, TensorEntry] = {}
    for entry in entries:
        other = merged.setdefault(entry.name, entry)
        if other is not entry and not is_recomputed(entry.name):
            raise CheckpointError(f"{entry.path}: {entry.name} is also in {other.path.name}, wanted it once")
        check_count(entry.path.parent, len(merged))
    return merged


def _check_map(index: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    """Raise CheckpointError unless each tensor is in the file that the index names, and the index names each tensor.

    Recomputed tensors are not read, wherever they are.
    """
    for name, file in weight_map.items():
        there = entries[name].path.name if name in entries else None
        if there != file and not is_recomputed(name):
            found = f"is in {there}" if there else "no shard has it"
            raise CheckpointError(f"{index}: {shown(name)} is said to be in {file}, and {found}")
    for name, entry in entries.items():
        if name not in weight_map and not is_recomputed(name):
            raise CheckpointError(f"{index}: {entry.path.name} holds {name}, which the index does not name")
