"""A tensor in a file, and files that are out of the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from input_files import ELEMENTS, OFFSET, drop

from baize_engine.checkpoint import file_io
from baize_engine.checkpoint.entry import TensorEntry


@pytest.fixture
def entry(tmp_path: Path) -> TensorEntry:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(OFFSET + 4 * ELEMENTS))
    return TensorEntry("w", "float32", (ELEMENTS,), path, OFFSET)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`drop`, and no probing: some disks are too fast to be asked."""
    monkeypatch.setattr(file_io, "is_cached", lambda *_: False)
    return drop
