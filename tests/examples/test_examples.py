"""What holds of every example."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from assets import REPO

EXAMPLES = sorted((REPO / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_has_a_test_and_a_line_in_the_table(example: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) < 40
    usage = ast.get_docstring(ast.parse(text))
    assert usage is not None
    assert re.search(rf"^ {{4}}python examples/{example.name}", usage, re.MULTILINE)
    test = (REPO / "tests" / "examples" / f"test_{example.name}").read_text()
    assert f'"{example.name}"' in test
    assert f"| [`{example.name}`]({example.name}) |" in (REPO / "examples" / "README.md").read_text()


def test_the_table_names_nothing_else() -> None:
    rows = [line for line in (REPO / "examples" / "README.md").read_text().splitlines() if line.startswith("| [")]
    assert len(rows) == len(EXAMPLES) >= 7
