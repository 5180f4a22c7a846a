"""safetensors files: where each tensor lies, and headers for new files. Reads only the header, and checks all of it.

Format: the header's length (8 bytes, little-endian), the header (a JSON object), then the data, covered without holes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.dtypes import SAFETENSORS, TO_SAFETENSORS
from baize_engine.checkpoint.entry import TensorEntry, check_count, check_name
from baize_engine.checkpoint.file_io import opened
from baize_engine.checkpoint.strict_json import parse
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief, kind, shown

# bytes; the format allows 100 MB, gigabytes as Python objects. The 1138 tensors of LLaMA 405B take 0.2 MB.
MAX_HEADER = 8 << 20
MAX_DIMENSIONS = 16  # more than any model has; keeps messages and products small


def read_safetensors(path: Path) -> list[TensorEntry]:
    """Read the tensors of a file, in the order of its header. CheckpointError names file, tensor, found and wanted."""
    with opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size < 8:
            raise CheckpointError(f"{path}: {size} bytes, wanted a safetensors file of at least 8")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            wanted = f"at most {size - 8} (the file has {size}): cut short, or not safetensors"
            raise CheckpointError(f"{path}: its header claims {length} bytes, wanted {wanted}")
        if length > MAX_HEADER:
            wanted = f"at most {MAX_HEADER}: more than any LLaMA needs"
            raise CheckpointError(f"{path}: its header has {length} bytes, wanted {wanted}")
        header = parse(file.read(length), f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is {kind(metadata)}, wanted an object")
    check_count(path, len(header))
    begin = 8 + length
    entries = [_entry(path, name, value, begin) for name, value in header.items()]
    _check_cover(path, entries, begin, size)
    return entries


def _entry(path: Path, name: str, value: Any, begin: int) -> TensorEntry:
    """The checked entry of a header's `value`; data begins at byte `begin` of the file."""
    check_name(path, name)
    where = f"{path}: {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: wanted an object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS:
        raise CheckpointError(f"{where}: dtype {brief(dtype)} is not one of {', '.join(SAFETENSORS)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: shape {brief(shape)} is not a list of at most {MAX_DIMENSIONS} natural numbers"
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {brief(offsets)} are not a begin and an end")
    entry = TensorEntry.stored(name, SAFETENSORS[dtype], tuple(shape), path, begin + offsets[0])
    found, wanted = offsets[1] - offsets[0], entry.stored_nbytes
    if found != wanted:
        raise CheckpointError(f"{where}: {found} bytes of data, wanted {wanted} for shape {shape} of {dtype}")
    return entry


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_cover(path: Path, entries: list[TensorEntry], begin: int, size: int) -> None:
    """Check that the data begins after the header, has no hole or overlap, and ends with the file."""
    ordered = sorted(entries, key=lambda entry: (entry.offset, entry.stored_nbytes))
    edges = [("the header", begin), *((entry.name, entry.offset + entry.stored_nbytes) for entry in ordered)]
    for (before, end), entry in zip(edges, ordered, strict=False):
        if entry.offset != end:
            fault = "overlaps" if entry.offset < end else "leaves a hole after"
            where = f"{path}: {shown(entry.name)} begins at byte {entry.offset}"
            raise CheckpointError(f"{where} and {fault} {shown(before)}, which ends at {end}")
    end = edges[-1][1]
    if end != size:
        raise CheckpointError(f"{path}: its tensors end at byte {end}, wanted the file's end at {size} (cut short?)")


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]], metadata: Mapping[str, str] | None, align: int
) -> bytes:
    """Encode the length and JSON header of a new file, padded with spaces to a multiple of `align` bytes.

    tensors: {name: (dtype, shape, begin, end)}, with byte offsets into the data.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape, begin, end) in tensors.items():
        header[name] = {"dtype": TO_SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"{len(tensors)} tensors need a header of {len(text)} bytes, wanted at most {MAX_HEADER}")
    return struct.pack("<Q", len(text)) + text
