"""The messages that docs/recovering.md explains are those that the package has."""

from __future__ import annotations

import ast
import re

import pytest
from assets import REPO

SECTION = (REPO / "docs" / "recovering.md").read_text().partition("\n## Troubleshooting\n")[2]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", SECTION, re.MULTILINE)
VALUE = re.compile(r"…|\d|^[^a-z]+$|\w[./]\w")  # a word that stands for a value: …, DIFF, 21, model.norm.weight
RUN = 3  # words in a row that must stand in a string of the package; all of them, where values leave fewer
LEAST = (
    2 / 3
)  # of the words of a message that stand in such runs; others are values that look like words, or beside them


def texts() -> str:
    """Every string of the package but docstrings, pieces of f-strings apart."""
    nodes = [node for path in (REPO / "baize_engine").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = (node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return "\n".join(text for text in strings if isinstance(text, str))


def between_values(message: str) -> list[list[str]]:
    """The words of a message from one value to the next, where these are two or more."""
    runs: list[list[str]] = [[]]
    for word in message.split():
        if VALUE.search(word):
            runs.append([])
        else:
            runs[-1].append(word)
    return [run for run in runs if len(run) > 1]


def known_share(message: str, known: str) -> float:
    """How many of a message's words stand in runs that the package has, too."""
    words = found = 0
    for run in between_values(message):
        run[-1] = run[-1].rstrip(",:;")  # which may belong to the value
        size = min(RUN, len(run))
        begins = [at for at in range(len(run) - size + 1) if " ".join(run[at : at + size]) in known]
        words += len(run)
        found += len({place for at in begins for place in range(at, at + size)})
    return found / words


@pytest.fixture(scope="module")
def known() -> str:
    return texts()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_exists(message: str, known: str) -> None:
    assert known_share(message, known) >= LEAST


@pytest.mark.parametrize(
    "message",
    [
        "full is not empty (1 entries, such as x): choose another one, please",
        "DIFF is a weight diff, not a model: its weights have a norm of 0.0031, which is too small; recover it with its base",
        "half: 1 of 2 parts of it cannot be found: pytorch_model-00001-of-00002.bin",
        "NAME is not a folder here, nor did any hub have one of that name",
    ],
)
def test_a_message_that_was_half_rewritten_is_found(message: str, known: str) -> None:
    assert known_share(message, known) < LEAST


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 20
