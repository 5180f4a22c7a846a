"""Elements of a tensor as float32, whatever its type: for checks that look at some rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.tensor_reader import TensorReader

BLOCK = 1 << 16  # elements held at a time: files decide how many there are


def widened(entry: Entry, count: int, first: int = 0) -> Iterator[memoryview]:
    """`count` elements of a tensor from element `first` on as float32 bytes, in blocks that share one buffer."""
    from baize_engine import _C

    block = min(count, BLOCK)
    out = memoryview(bytearray(block * 4))
    with TensorReader(entry) as reader:
        buffer = memoryview(bytearray(block * reader.size))
        for begin in range(first, first + count, BLOCK):
            end = min(begin + BLOCK, first + count)
            view = out[: (end - begin) * 4]
            _C.widen(reader.read(begin, end, buffer), entry.dtype, view)
            yield view


def floats(entry: Entry, count: int, first: int = 0) -> array[float]:
    """The same elements as one array of float32."""
    values = array("f")
    for view in widened(entry, count, first):
        values.frombytes(view)
    return values
