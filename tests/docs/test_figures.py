"""Every figure of README.md and docs/ is that of a file in benchmarks/results/, or is stated with its reason."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from assets import REPO
from figures.page import pattern, unaccounted, visible
from figures.results import RESULTS

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
NOTES = sorted(RESULTS.glob("notes-*.json"))


def source(page: Path) -> ModuleType | None:
    """The module that accounts for a page's figures; None where the page has none."""
    name = page.stem.lower()
    if not (Path(__file__).parents[1] / "helpers" / "figures" / f"{name}.py").exists():
        return None
    return importlib.import_module(f"figures.{name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_figures_of_a_page_are_those_that_were_measured(page: Path) -> None:
    text, module = visible(page.read_text()), source(page)
    accounted = [*module.claims(), *module.STATED] if module else []
    assert [phrase for phrase in accounted if not pattern(phrase).search(text)] == []
    assert unaccounted(text, accounted) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_stated_has_a_reason_of_its_own(page: Path) -> None:
    """A figure that another page has is a claim on both."""
    reasons = getattr(source(page), "STATED", {}).values()
    assert [reason for reason in reasons if not reason.strip() or re.search(r"\.md\b", reason)] == []


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.stem)
def test_what_was_measured_by_hand_says_where_and_how(path: Path) -> None:
    rows = json.loads(path.read_text())["rows"]
    assert all(row.keys() == {"id", "machine", "commit", "command", "values"} for row in rows)
    assert all(row["values"] and all(row[key] for key in ("machine", "command")) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_figure_that_nobody_measured_is_found() -> None:
    prose = "It takes 3.5 s, **1.2** times that\nof 40 % or `9 s`; v0.3.36.\n\n"
    text = visible(f"{prose}| a | 12.5 |\n\n```sh\nsleep 7 s\n```\n<!-- 8 s -->")
    assert len(unaccounted(text, [])) == 4
    assert unaccounted(text, ["takes 3.5 s, **1.2** times", "40 %", "| 12.5 |"]) == []
    assert unaccounted(text, ["takes 3.5 s, **1.2** times", "| 12.5 |"]) == ["It  §  that of 40 % or `code`; v0.3.36."]


@pytest.mark.parametrize("phrase", ["2 %", "1.2", "203", "20"])
def test_a_phrase_is_no_part_of_another_number(phrase: str) -> None:
    text = "It takes 12 %, 1.25, 1,203 and 20.5 of it."
    assert not pattern(phrase).search(text)
    assert pattern(phrase).search(f"{text} Or {phrase}.")


def test_every_number_with_a_decimal_point_is_a_figure() -> None:
    text = visible(
        "The ratio was 1.25 and 0.9 (2.5) with 1.26B; version 0.3.36, Triton 3.7, Slurm 22.05, `--dtype 1.5`."
    )
    assert len(unaccounted(text, [])) == 3
    assert unaccounted(text, ["1.25 and 0.9 (2.5)"]) == []


@pytest.mark.parametrize("text", ["with 1.62B parameters", "the torch is 1.5 of it", "(Triton: 3.5)", "torch 2.8 s"])
def test_what_only_resembles_a_version_or_size_is_a_figure(text: str) -> None:
    assert len(unaccounted(text, [])) == 1
