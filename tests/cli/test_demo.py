"""`baize demo`: the questions, and how many were right."""

from __future__ import annotations

import json
from pathlib import Path

from baize_engine.cli.demo import PAIR, run

QUESTIONS = json.loads((PAIR / "questions.json").read_text())


def test_the_demo_runs_and_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run(lines.append, tmp_path / "tuned", device="cpu") == 0
    assert any(f"{len(QUESTIONS)} of {len(QUESTIONS)} right" in line for line in lines)
    assert not any("\x1b" in line for line in lines)
