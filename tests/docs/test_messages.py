"""The messages that docs/recovering.md explains are those that the package has."""

from __future__ import annotations

import ast
import re

import pytest
from assets import REPO

SECTION = (REPO / "docs" / "recovering.md").read_text().partition("\n## Troubleshooting\n")[2]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", SECTION, re.MULTILINE)
RUN = 3  # words in a row that a message shares with a string of the package: values come between the others


def texts() -> str:
    """Every string of the package, pieces of f-strings apart."""
    trees = (ast.parse(path.read_text()) for path in (REPO / "baize_engine").rglob("*.py"))
    strings = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(text for text in strings if isinstance(text, str))


@pytest.fixture(scope="module")
def known() -> str:
    return texts()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_exists(message: str, known: str) -> None:
    words = message.split()
    runs = [" ".join(words[at : at + RUN]) for at in range(max(1, len(words) - RUN + 1))]
    assert [run for run in runs if run in known] != []


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 20
