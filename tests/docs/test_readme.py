"""README.md is one page, and shows what `make demo` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from assets import REPO
from fences import fences

from baize_engine.cli import main

PAGE = REPO / "README.md"
MOST_WORDS = 900


def test_it_is_one_page() -> None:
    assert len(PAGE.read_text().split()) < MOST_WORDS


def test_it_shows_lines_that_the_demo_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = (fence.text.splitlines() for fence in fences(PAGE) if fence.language == "text")
    assert main(["demo", "--quiet", "--out", str(tmp_path / "out")]) == 0
    printed = iter(capsys.readouterr().out.splitlines())
    assert len(shown) > 5
    assert [line for line in shown if line not in printed] == []  # in this order
