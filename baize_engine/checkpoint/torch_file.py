"""`.bin` and `.pth` files of torch.save (torch 1.6 and newer): where each tensor lies. Reads no data, runs no code of the file.

Such a file is an uncompressed zip archive: `<name>/data.pkl`, a pickle program that describes the tensors, and one entry
`<name>/data/<key>` for the bytes of each storage. The program runs in a pickle machine whose only reachable names are the
stand-ins below: torch itself is not imported, and `torch.load` is never called (its weights_only=True has had remote code
execution: CVE-2025-32434).
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from baize_engine.checkpoint.dtypes import ITEMSIZE, TORCH_STORAGES
from baize_engine.checkpoint.entry import TensorEntry, refuse_pointer
from baize_engine.errors import CheckpointError

MAX_PROGRAM = 64 << 20  # bytes of data.pkl; a 65B model's is below 1 MB
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field

# Whatever a broken or hostile program can make the pickle machine raise.
PROGRAM_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError, AssertionError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class _StorageType:
    """Stands for torch.HalfStorage and its kin."""

    dtype: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride) or not all(map(_is_natural, numbers)):
        raise pickle.UnpicklingError("a tensor is described by something else than a storage and natural numbers")
    return _Tensor(storage, offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(dtype) for name, dtype in TORCH_STORAGES.items()},
}


class _Machine(pickle._Unpickler):
    """The allow-list. The pure-Python machine: the C one lets a program allocate by naming a huge memo index."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weight file needs")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something else than a storage")
        _, kind, key, _, numel = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not _is_natural(numel):
            raise pickle.UnpicklingError(f"it refers to a storage of unknown type or size ({key!r})")
        return _Storage(key, kind.dtype, numel)


def read_torch(path: Path) -> list[TensorEntry]:
    """The tensors of a file, in the order of its state dict. CheckpointError names the file, the tensor, found and wanted."""
    with open(path, "rb") as file:
        beginning = file.read(512)
        refuse_pointer(path, beginning)
        if not beginning.startswith(b"PK"):
            raise CheckpointError(_not_a_zip(path, beginning))
        try:
            archive = _Archive(path, file)
            program = archive.read("data.pkl", MAX_PROGRAM)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: not a whole zip archive ({error}); cut short?") from None
        try:
            state = _Machine(io.BytesIO(program), encoding="utf-8").load()
        except PROGRAM_ERRORS as error:
            raise CheckpointError(f"{path}: refused, data.pkl is not a plain state dict: {error}") from None
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: holds a {type(state).__name__}, wanted a dict of tensors")
        return [_entry(path, archive, name, value) for name, value in state.items()]


def _entry(path: Path, archive: _Archive, name: Any, value: Any) -> TensorEntry:
    where = f"{path}: {name if isinstance(name, str) else type(name).__name__}"
    if not isinstance(name, str) or not isinstance(value, _Tensor):
        raise CheckpointError(f"{where} is a {type(value).__name__}, wanted a flat dict of names to tensors")
    storage = value.storage
    size = ITEMSIZE[storage.dtype]
    begin, stored = archive.locate(f"data/{storage.key}", where)
    if stored != storage.numel * size:
        raise CheckpointError(
            f"{where}: its storage {storage.key} has {stored} bytes, wanted {storage.numel * size} for {storage.numel} of "
            f"{storage.dtype}"
        )
    count = prod(value.shape)
    if value.offset + count > storage.numel:
        raise CheckpointError(
            f"{where}: elements {value.offset} to {value.offset + count} of a storage that has {storage.numel}"
        )
    if count and not _is_contiguous(value.shape, value.stride):
        raise CheckpointError(f"{where}: stride {value.stride} of shape {value.shape}, wanted a contiguous tensor")
    return TensorEntry(name, storage.dtype, value.shape, path, begin + value.offset * size)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for length, step in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _not_a_zip(path: Path, beginning: bytes) -> str:
    if beginning.startswith(b"\x80") or b"ustar" in beginning:
        return (
            f"{path}: a file of torch before 1.6, which only running its pickle could read. If you trust it, write it anew "
            "with a current torch and put NEW in its place: python -c \"import torch; torch.save(torch.load('OLD', "
            "map_location='cpu', weights_only=True), 'NEW')\""
        )
    return f"{path}: begins with {beginning[:8]!r}, wanted a zip archive of torch.save"


class _Archive:
    """The zip directory: stored, unencrypted, uniquely named entries under one folder, and where their bytes lie."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, io.SEEK_END)
        entries = zipfile.ZipFile(file).infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path}: the entry {twice!r} stands there twice")
        programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise CheckpointError(
                f"{path}: {len(programs)} entries data.pkl, wanted one (is this a file of torch.save?)"
            )
        self._folder = programs[0][: -len("data.pkl")]
        self._entries = dict(zip(names, entries, strict=True))
        if f"{self._folder}byteorder" in self._entries and self.read("byteorder", 16) != b"little":
            raise CheckpointError(f"{path}: written in big-endian byte order, wanted little")

    def read(self, name: str, most: int) -> bytes:
        begin, size = self.locate(name, str(self._path))
        if size > most:
            raise CheckpointError(f"{self._path}: {name} has {size} bytes, wanted at most {most}")
        self._file.seek(begin)
        return self._file.read(size)

    def locate(self, name: str, where: str) -> tuple[int, int]:
        """(byte offset in the file, bytes) of an entry's data, checked against the file."""
        entry = self._entries.get(self._folder + name)
        if entry is None:
            raise CheckpointError(f"{where}: the archive has no entry {name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"{where}: the entry {name} is compressed or encrypted, wanted it stored plainly")
        if not 0 <= entry.header_offset < self._size:
            raise CheckpointError(
                f"{where}: the entry {name} is said to begin at byte {entry.header_offset} of {self._size}"
            )
        self._file.seek(entry.header_offset)
        header = self._file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{where}: the entry {name} does not begin at byte {entry.header_offset}")
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if entry.file_size != entry.compress_size or begin + entry.file_size > self._size:
            raise CheckpointError(
                f"{where}: the entry {name} has {entry.file_size} bytes from byte {begin}, the file has {self._size} in all"
            )
        return begin, entry.file_size
