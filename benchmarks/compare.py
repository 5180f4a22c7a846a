"""Compares two reports of profile_step.py: what became faster, and what else differs. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import summary
from reports import table

CONDITIONS = ("device", "commit", "preset", "kind", "batch", "context", "tuned", "versions")
SIDE_BY_SIDE = ("us", "in_step_us", "share", "of_specified", "of_copy", "of_read")
SAME = "all conditions are the same"


def read(path: Path) -> dict[str, Any]:
    """The report in a file; SystemExit says what is wrong with it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as a report: {error}") from error
    if not isinstance(found, dict) or found.get("bench") != "profile_step":
        bench = found.get("bench") if isinstance(found, dict) else type(found).__name__
        raise SystemExit(f"{path} is a report of {bench!r}, wanted one of profile_step.py (--json FILE)")
    return found


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions that are not the same, a row for each."""
    found = []
    for name in CONDITIONS:
        here, there = one.get(name, "not said"), two.get(name, "not said")
        if isinstance(here, dict) and isinstance(there, dict):
            apart = [key for key in {**here, **there} if here.get(key) != there.get(key)]
            found += [{"condition": key, "A": here.get(key, ""), "B": there.get(key, "")} for key in apart]
        elif here != there:
            found.append({"condition": name, "A": here, "B": there})
    return found


def rows(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each op that either has, in the order of the first; what one lacks is left out.

    `change_%` is that of `us` from A to B: below 0, B is faster.
    """
    first, second = ({row["op"]: row for row in report["rows"] if "us" in row} for report in (one, two))
    found = []
    for op in {**first, **second}:
        here, there = first.get(op, {}), second.get(op, {})
        row: dict[str, Any] = {"op": op}
        for key in SIDE_BY_SIDE:
            row |= {f"{key}_{name}": side[key] for name, side in (("A", here), ("B", there)) if key in side}
            if key == "us" and here and there:
                row["change_%"] = (there["us"] / here["us"] - 1) * 100
        found.append(row)
    return found


def show(one: Mapping[str, Any], two: Mapping[str, Any], path: Path | None, page: Path | None) -> None:
    """Prints both tables, and as the last line both as JSON, which also goes to `path`; as Markdown they go to `page`."""
    found = {"bench": "profile_compare", "differing": differing(one, two), "rows": rows(one, two)}
    print(*table(found["rows"]), "", sep="\n")
    print(*(table(found["differing"]) if found["differing"] else [SAME]), sep="\n")
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    if page:
        apart = summary.table(found["differing"]) if found["differing"] else SAME
        titles = [f"- {name}: {report.get('title', 'decode step')}" for name, report in (("A", one), ("B", two))]
        parts = ["# Two decode steps", "\n".join(titles), summary.table(found["rows"]), "## Not the same", apart]
        page.write_text("\n\n".join(parts) + "\n")
    print(json.dumps(found))
