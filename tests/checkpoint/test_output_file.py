"""A file of a result: direct and buffered writes that meet anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baize_engine.checkpoint.buffers import PAGE, aligned_buffer
from baize_engine.checkpoint.output_file import OutputFile


@pytest.mark.parametrize(("offset", "length"), [(0, 3 * PAGE), (PAGE, 2 * PAGE + 17), (5, PAGE), (2 * PAGE, 9)])
def test_direct_and_buffered_writes_meet(tmp_path: Path, offset: int, length: int) -> None:
    total = 6 * PAGE
    file = OutputFile(tmp_path / "f", total)
    view = aligned_buffer(length)
    view[:] = os.urandom(length)
    file.write_at(offset, view)
    file.sync()
    file.close()
    content = (tmp_path / "f").read_bytes()
    assert content == bytes(offset) + bytes(view) + bytes(total - offset - length)
