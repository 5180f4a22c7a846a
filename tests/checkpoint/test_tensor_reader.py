"""Reading a tensor by ranges: the bytes of each, and a file that was cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from input_files import read, takes_direct, watched

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError


@pytest.mark.parametrize("piece", [1, 333, 1024, 5000])
@pytest.mark.parametrize("offset", [0, 1, 4, 64, 4092, 4096, 4160, 10000])
def test_any_range_of_a_cold_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: Callable[[Path], None], offset: int, piece: int
) -> None:
    content = os.urandom(offset + 4 * 9000)
    path = tmp_path / "weights"
    path.write_bytes(content)
    cold(path)
    seen = watched(monkeypatch)
    buffer = aligned_buffer(4 * piece + SLACK)
    with TensorReader(TensorEntry("w", "float32", (9000,), path, offset), direct=True) as reader:
        for begin in range(0, 9000, max(piece, 90)):
            end = min(begin + piece, 9000)
            found = reader.read(begin, end, buffer)
            assert found == content[offset + 4 * begin : offset + 4 * end]
    assert all(seen) == (offset % 4 == 0 and takes_direct(tmp_path))  # values in odd places are read as before


def test_a_file_that_was_cut(entry: TensorEntry, cold: Callable[[Path], None]) -> None:
    os.truncate(entry.path, 3 << 20)
    cold(entry.path)
    with pytest.raises(CheckpointError, match=r"weights: w: the file ends at byte 3145728, wanted \d+ more"):
        read(entry)
