"""The files in benchmarks/results/, as the modules of pages read them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from assets import REPO

RESULTS = REPO / "benchmarks" / "results"


@cache
def report(name: str) -> dict[str, Any]:
    """The report in benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def row(name: str, part: str = "rows", **wanted: object) -> dict[str, Any]:
    """The one row of a report, or of another list in it, whose fields equal those of `wanted`."""
    rows = [each for each in report(name)[part] if wanted.items() <= each.items()]
    if len(rows) != 1:
        raise LookupError(f"{name}.json has {len(rows)} rows with {wanted}, wanted 1")
    return rows[0]


def commit(name: str) -> str:
    """The commit of a report, as short as the pages write it."""
    return report(name)["commit"][:7]


def note(name: str, id: str) -> dict[str, Any]:
    """A figure that was measured by hand: the row of notes-NAME.json with this id.

    Such a row has id, machine, commit, command (how it was measured) and values ({name: number}).
    """
    return row(f"notes-{name}", id=id)


def commits(name: str) -> list[str]:
    """The commits of the notes of a page, which must stand on it."""
    return sorted({each["commit"] for each in report(f"notes-{name}")["rows"] if each["commit"]})
