"""Lists of a page that Python-Markdown, which makes the site, reads in another way than GitHub."""

from __future__ import annotations

import re
from pathlib import Path

from fences import fences

ITEM = re.compile(r" *(?:[-*+]|\d+\.) +\S")


def read_differently(text: str) -> list[str]:
    """The lines at which the two part, as "NUMBER: LINE".

    The site begins a list only after an empty line, and takes to an item what is indented by four columns.
    """
    lines = text.splitlines()
    skipped = set()
    for fence in fences(Path("page.md"), text):
        skipped.update(range(fence.line, fence.line + fence.text.count("\n") + 1))
    options = False  # the lines under an object of the API
    for number, line in enumerate(lines):
        options = line.startswith(":::") or (options and line.startswith("    "))
        if options:
            skipped.add(number)
    found, in_list = [], False
    for number, line in enumerate(lines):
        if number in skipped or not line.strip():
            continue
        begins = number == 0 or not lines[number - 1].strip() or lines[number - 1].lstrip().startswith("<!--")
        indent = len(line) - len(line.lstrip())
        item = ITEM.match(line) is not None
        if begins and not indent:
            in_list = item
        if item:
            wrong = indent % 4 or not (begins or in_list)
        else:
            wrong = begins and in_list and indent % 4
        if wrong:
            found.append(f"{number + 1}: {line}")
    return found
