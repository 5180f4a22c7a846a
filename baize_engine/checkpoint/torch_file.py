"""`.bin` and `.pth` files of torch.save (torch 1.6 and newer): where each tensor lies. Reads no data, runs no code of the file.

Such a file is an uncompressed zip archive (`zip_directory.py`): `<name>/data.pkl`, a pickle program that describes the tensors
(`pickle_program.py`), and an entry `<name>/data/<key>` with the bytes of each storage. Other entries, in any order, are
ignored: the file may have been unzipped and zipped again. torch is not imported, and `torch.load` is never called: its
weights_only=True has had remote code execution (CVE-2025-32434).

The state dict is the whole value of the program, or in a dict that a trainer keeps beside optimizer, step and settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import TensorEntry, check_count, check_name
from baize_engine.checkpoint.file_io import opened
from baize_engine.checkpoint.names import is_recomputed
from baize_engine.checkpoint.pickle_program import ProgramError, Tensor, run
from baize_engine.checkpoint.zip_directory import CompressedError, ZipError, read_directory
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

MAX_PROGRAM = 4 << 20  # bytes of data.pkl; a 65B model's has less than 1 MB
OF_FINDER = b"__MACOSX/"  # the folder that macOS adds for metadata when it zips a folder
# The command holds one entry at a time in memory, and runs nothing of the pickle.
UNZIP = (
    'the file was zipped again; replace it with NEW: python -c "from zipfile import ZipFile as Z; '
    "o, n = Z('OLD'), Z('NEW', 'w'); [n.writestr(i.filename, o.read(i)) for i in o.infolist()]; n.close()\""
)
# the key of Lightning, of most others, of DeepSpeed, of torch's manual
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
DEPTH = 4  # nested dicts that are searched for tensors, for the message
LISTED = 2  # places of tensors in a message
MOST = 32  # characters of a key in a message
_PLAIN = re.compile(rf"[\w.-]{{1,{MOST}}}", re.ASCII)  # keys that are safe in a command

Keys = tuple[Any, ...]


def read_torch(path: Path) -> list[TensorEntry]:
    """Read the tensors of a file, in the order of its state dict. CheckpointError names file, tensor, found and wanted."""
    with opened(path) as file:
        beginning = file.read(8)
        if not beginning.startswith(b"PK"):
            raise CheckpointError(_not_a_zip(path, beginning))
        archive = _Archive(path, file)
        program = archive.read("data.pkl", MAX_PROGRAM)
        try:
            value = run(program)
        except ProgramError as error:
            near = f", at {shown(error.near)}" if error.near else ""
            raise CheckpointError(f"{path}: refused, data.pkl is not a plain state dict{near}: {error}") from None
        state = _state_of(path, value)
        check_count(path, len(state))
        entries = []
        for name, value in state.items():
            try:
                entries.append(_entry(path, archive, name, value))
            except CheckpointError:
                if not isinstance(name, str) or not is_recomputed(name):
                    raise  # a recomputed buffer is not read anyway; it may be an expanded one, with one element in the file
        return entries


def _entry(path: Path, archive: _Archive, name: Any, value: Any) -> TensorEntry:
    """The checked entry of one item of the state dict."""
    where = f"{path}: {shown(name) if isinstance(name, str) else type(name).__name__}"
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{where} is a {type(value).__name__}, wanted a flat dict of names to tensors")
    check_name(path, name)
    storage, key = value.storage, shown(value.storage.key)
    size, count = ITEMSIZE[storage.dtype], prod(value.shape)
    begin, stored = archive.locate(f"data/{storage.key}", where)
    if stored != storage.numel * size:
        wanted = f"{storage.numel * size} for {storage.numel} of {storage.dtype}"
        raise CheckpointError(f"{where}: its storage {key} has {stored} bytes, wanted {wanted}")
    end = value.offset + count
    if end > storage.numel:
        raise CheckpointError(f"{where}: elements {value.offset} to {end} of a storage that has {storage.numel}")
    if count and not _is_contiguous(value.shape, value.stride):
        raise CheckpointError(f"{where}: stride {value.stride} of shape {value.shape}, wanted a contiguous tensor")
    return TensorEntry.stored(name, storage.dtype, value.shape, path, begin + value.offset * size)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    return all(shape[i] == 1 or stride[i] == prod(shape[i + 1 :]) for i in range(len(shape)))


def _not_a_zip(path: Path, beginning: bytes) -> str:
    if beginning.startswith(b"\x80"):
        reason = "a file of torch before 1.6, which can only be read by running its pickle"
        return f"{path}: {reason}. If you trust it, save it again with a current torch and {_rewriting()}"
    return f"{path}: {f'begins with {beginning!r}' if beginning else 'is empty'}, wanted a zip archive of torch.save"


class _Archive:
    """The entries in the folder of an archive's only data.pkl, and where their bytes lie."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        try:
            self._members = read_directory(file, file.seek(0, os.SEEK_END))
        except ZipError as error:
            raise CheckpointError(f"{path}: not a whole zip archive of torch.save, {error}; cut short?") from None
        names = [name for name in self._members if not name.startswith(OF_FINDER)]
        programs = [name for name in names if name.rpartition(b"/")[2] == b"data.pkl"]
        if len(programs) != 1:
            listed = ", ".join(shown(name.decode(errors="replace")) for name in programs[:2])
            found = f"{len(programs)} entries data.pkl{f' ({listed})' if listed else ''}"
            raise CheckpointError(f"{path}: {found}, wanted one (is this a file of torch.save?)")
        self._folder = programs[0].removesuffix(b"data.pkl")
        if self._folder + b"byteorder" in self._members and self.read("byteorder", 16) != b"little":
            raise CheckpointError(f"{path}: written in big-endian byte order, wanted little")

    def read(self, name: str, most: int) -> bytes:
        """Read an entry of at most `most` bytes."""
        begin, size = self.locate(name, str(self._path))
        if size > most:
            raise CheckpointError(f"{self._path}: {name} has {size} bytes, wanted at most {most}")
        self._file.seek(begin)
        return self._file.read(size)

    def locate(self, name: str, where: str) -> tuple[int, int]:
        """(byte offset in the file, size in bytes) of an entry's data, checked against the file. Errors begin with `where`."""
        member = self._members.get(self._folder + name.encode())
        if member is None:
            raise CheckpointError(f"{where}: the archive has no entry {shown(name)}")
        try:
            return member.locate(self._file), member.size
        except ZipError as error:
            remedy = f": {UNZIP}" if isinstance(error, CompressedError) else ""
            raise CheckpointError(f"{where}: the entry {shown(name)} {error}{remedy}") from None


def _state_of(path: Path, found: Any) -> dict[Any, Any]:
    """The state dict in `found`, the value that the file `path` holds. CheckpointError if it is ambiguous, or nested deeper.

    It is `found` itself, or the value of one of WRAPPERS if no other key holds a dict of tensors. The caller checks its items.
    """
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, wanted a dict of tensors")
    if any(isinstance(value, Tensor) for value in found.values()):
        return found
    inner = _dicts_of_tensors(found)
    if not inner:
        return found
    top = [keys for keys in inner if len(keys) == 1]
    if len(top) == 1 and top[0][0] in WRAPPERS:
        return inner[top[0]]
    weights = [keys for keys, state in inner.items() if any(name.endswith(".weight") for name in state)]
    likeliest = sorted(weights or inner, key=lambda keys: not set(keys).intersection(WRAPPERS))
    raise CheckpointError(_refusal(path, likeliest))


def _rewriting(keys: Sequence[Any] = ()) -> str:
    """The advice, with a command, to rewrite a torch file with only what is under `keys`."""
    plain = [key if _PLAIN.fullmatch(str(key)) else "KEY" for key in keys]
    state = f"torch.load('OLD', map_location='cpu', weights_only=True){''.join(f'[{key!r}]' for key in plain)}"
    return f"replace it by NEW: python -c \"import torch; torch.save({state}, 'NEW')\""


def _refusal(path: Path, places: list[Keys]) -> str:
    listed = " and ".join(" > ".join(shown(str(key))[:MOST] for key in keys) for keys in places[:LISTED])
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    which = "it" if len(places) == 1 else "the one that is the model's"
    wanted = f"one dict of them, alone or as {', '.join(WRAPPERS)}"
    remedy = f"If you trust it, write {which} anew and {_rewriting(places[0])}"
    return f"{path}: its tensors are in {listed}{more}, wanted {wanted}. {remedy}"


def _dicts_of_tensors(outer: dict[Any, Any]) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of names to tensors below `outer`, each once, by the keys that lead to it; the least deep first."""
    found: dict[Keys, dict[str, Tensor]] = {}
    seen = {id(outer)}  # a program may put a dict into itself, or into a million others
    level: list[tuple[Keys, dict[Any, Any]]] = [((), outer)]
    for _ in range(DEPTH):
        below: list[tuple[Keys, dict[Any, Any]]] = []
        for above, container in level:
            for key, value in container.items():
                if not isinstance(value, dict) or id(value) in seen:
                    continue
                seen.add(id(value))
                keys = (*above, key)
                if value and all(type(name) is str and isinstance(item, Tensor) for name, item in value.items()):
                    found[keys] = value
                else:
                    below.append((keys, value))
        level = below
    return found
