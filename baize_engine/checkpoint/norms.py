"""Norm weights, which tell a weight diff from a model: they are near zero in a diff and up to about one in a model.

The manifest of our own `make_diff` tells it, too. Each norm is one row (20 KB in float32 at 13B), so all norms of a model are
about 2 MB. Needs neither torch nor compiled code.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

from baize_engine.checkpoint.base import Index
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.manifest import MAKE_DIFF, MANIFEST_NAME, read_manifest
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError

SUFFIX = "norm.weight"
LAST = "model.norm.weight"  # the norm before the output head: 1 to 3 in published models
MAX_NORM = 1 << 18  # elements; larger ones are ignored (published norms have 4096 to 16384)
BLOCK = 1 << 16  # elements held at a time; a published norm is one block
# Mean |weight| that no norm of a diff reaches: in published diffs it is below 0.02. Some norms of a model are below, never all.
LEAST = 0.1


def mean_magnitude(entry: Entry) -> float:
    """The mean of |x| over a tensor of float32, float16 or bfloat16; 0.0 if it has no elements."""
    total = 0.0
    with TensorReader(entry) as reader:
        buffer = memoryview(bytearray(min(BLOCK, entry.numel) * reader.size))
        for begin in range(0, entry.numel, BLOCK):
            view = reader.read(begin, min(begin + BLOCK, entry.numel), buffer)
            total += sum(map(abs, _floats(view, entry.dtype)))
    return total / max(1, entry.numel)


def _floats(view: memoryview, dtype: str) -> memoryview[float] | tuple[float, ...]:
    if dtype == "float32":
        return view.cast("f")
    if dtype == "float16":
        return struct.unpack(f"{len(view) // 2}e", view)
    return memoryview(array("I", (bits << 16 for bits in view.cast("H")))).cast("B").cast("f")  # bfloat16


def refuse_diff(index: Index) -> None:
    """Raise CheckpointError if the weights are a weight diff."""
    if reason := why_diff(index):
        raise CheckpointError(reason)


def why_diff(index: Index) -> str | None:
    """The message for weights that are a weight diff; None if they are a model's, or have no norms.

    Reads the manifest, if there is one, one norm of a model, and all norms of a diff.
    """
    found = "its manifest says so" if _made_by_make_diff(index.folder) else _small_norms(index)
    if found is None:
        return None
    remedy = f"add it to its base first: baize recover --path_raw BASE --path_diff {index.folder} --path_tuned OUT"
    return f"{index.folder} is a weight diff, not a model: {found}; {remedy}"


def _made_by_make_diff(folder: Path) -> bool:
    """Whether a folder has the manifest of a diff. A manifest that cannot be read says nothing."""
    try:
        return (folder / MANIFEST_NAME).exists() and read_manifest(folder).operation == MAKE_DIFF
    except (CheckpointError, OSError):
        return False


def _small_norms(index: Index) -> str | None:
    """What the norm weights of a diff are like; None if one is as large as a model's, or there are none."""
    entries = index.entries
    vectors = [name for name, entry in entries.items() if len(entry.shape) == 1 and entry.numel <= MAX_NORM]
    norms = [name for name in vectors if name.endswith(SUFFIX) and entries[name].dtype in FLOATS]
    largest = 0.0
    for name in sorted(norms, key=lambda name: not name.endswith(LAST)):
        largest = max(largest, mean_magnitude(entries[name]))
        if not largest < LEAST:  # also for NaN
            return None
    return f"its norm weights are at most {largest:.2g} in size, wanted {LEAST} or more" if norms else None
