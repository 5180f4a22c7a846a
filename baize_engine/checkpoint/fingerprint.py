"""A fingerprint of a checkpoint, by which machines see that they have the same one without reading it whole."""

from __future__ import annotations

import hashlib
import os

from baize_engine.checkpoint.file_io import open_read, read_into
from baize_engine.checkpoint.index import Index

BEGIN = 4096  # bytes of each stored tensor that count: two finetunes of one base differ in nearly every tensor


def fingerprint(*indexes: Index) -> str:
    """SHA-256 of the names, types, shapes and first bytes of all tensors. CheckpointError names a file that ends early."""
    digest = hashlib.sha256()
    for index in indexes:
        files = {path: open_read(path) for path in index.files}
        try:
            for name, entry in sorted(index.entries.items()):
                digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
                for part in entry.parts:
                    begin = memoryview(bytearray(min(BEGIN, part.stored_nbytes)))
                    read_into(files[part.path], begin, part.offset, f"{part.path}: {name}")
                    digest.update(begin)
        finally:
            for descriptor in files.values():
                os.close(descriptor)
    return digest.hexdigest()
