"""Compares a profile with predict.py's figures for its card: microseconds of each op and of the step.

Measured is an op's time within the step where the profile has it, else its time by itself. A ratio far from 1 says where the
model of the card, or the kernel, is not what it was thought to be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import predict
from cards import CARDS, Card, card_of
from common import parser
from reports import Report

STEP = "step"  # the row of the whole step in a profile
RULES = "rules"  # the name of no table of launch settings
CASE = ("preset", "kind", "batch", "context")


def rows(profile: Mapping[str, Any], card: Card) -> list[dict[str, Any]]:
    """A row for each op that was both predicted and measured, and at the end the step."""
    case = tuple(profile[key] for key in CASE)
    predicted = predict.step(card, *case)
    measured = [{**row, "us": row.get("in_step_us", row["us"])} for row in profile["rows"] if "us" in row]
    found = predict.compare(predicted, measured)
    for row in measured:
        if row["op"] == STEP:
            us = predict.totals(predicted, card, *case)["step_ms"] * 1e3
            found.append({"op": STEP, "predicted_us": us, "measured_us": row["us"], "ratio": row["us"] / us})
    return found


def read(path: Path) -> dict[str, Any]:
    """A report of profile_step.py; ValueError names the file and what it lacks."""
    profile = json.loads(path.read_text())
    if lacking := [key for key in (*CASE, "device", "rows") if key not in profile]:
        raise ValueError(f"{path}: {', '.join(lacking)} not in it, wanted a report of profile_step.py")
    if (table := profile.get("tuned", RULES)) != RULES:
        raise ValueError(
            f"{path}: profiled with the launch settings of {table}, wanted --tuned none: predictions are of the rules"
        )
    return profile


def card(profile: Mapping[str, Any], name: str | None) -> Card:
    """The card of that name, else the profile's; ValueError where the profile's is not known."""
    found = CARDS[name] if name else card_of(profile["device"])
    if found is None:
        raise ValueError(f"{profile['device']!r} is not in benchmarks/cards.py; --card names one")
    return found


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--from_json", type=Path, required=True, metavar="FILE", help="a report of profile_step.py")
    options.add_argument("--card", choices=CARDS, default=None, help="default: the one that was profiled")
    chosen: argparse.Namespace = options.parse_args()
    try:
        profile = read(chosen.from_json)
        known = card(profile, chosen.card)
    except (OSError, ValueError) as error:
        options.error(str(error))
    facts = {"profiled": profile["device"], "card": known.key, **{key: profile[key] for key in CASE}}
    with Report("predicted", chosen, facts=facts) as report, report.case():
        for row in rows(profile, known):
            report.row(row)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
