"""`baize make_diff` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from commands import baize


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


def test_hyphens_and_make_diff(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tuned, again = tmp_path / "tuned", tmp_path / "again"
    done = baize("recover", "--path-raw", pair[0], "--path-diff", pair[1], "--path-tuned", tuned, "--quiet")
    assert done.returncode == 0, done.stderr
    done = baize("make-diff", "--path-raw", pair[0], "--path-tuned", tuned, "--path-diff", again, "--quiet")
    assert done.returncode == 0, done.stderr
    assert (again / "model.safetensors").exists()
