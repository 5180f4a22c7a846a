"""The fenced blocks of the pages, with the markers above them that say what the tests do with each.

A marker is a comment on the line directly above a fence of sh or python:

    <!-- runnable -->                     a test runs it in a workspace (tests/docs/conftest.py)
    <!-- runnable: without baize-13b -->  the workspace lacks these names, because the block makes them
    <!-- not run: needs a GPU -->         it is not run, for this reason
    <!-- recipe: slurm -->                tests/examples/test_distributed_recipes.py runs it with stand-ins
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assets import REPO

LANGUAGES = ("sh", "python", "json", "text", "toml")
RUN = ("sh", "python")  # languages whose fences need a marker
WORKSPACE = ("llama-13b", "open-instruct-baize-13b-diff", "baize-13b", "prompts.jsonl")

OPENING = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>.*)$")
MARKER = re.compile(
    r"^ *<!-- (?:(?P<runnable>runnable)(?:: without (?P<without>.*))?|not run: .*\w.*|recipe: [\w-]+) -->$"
)


@dataclass(frozen=True)
class Fence:
    """A fenced block. line: of its opening, counted from 1; above: the line before that; text: what it holds."""

    page: Path
    line: int
    above: str
    language: str
    text: str

    @property
    def at(self) -> str:
        """Where it stands, as a person looks it up: "docs/running.md:12"."""
        return f"{self.page.relative_to(REPO)}:{self.line}"

    @property
    def runnable(self) -> bool:
        marker = MARKER.match(self.above)
        return self.language in RUN and marker is not None and marker["runnable"] is not None

    @property
    def without(self) -> tuple[str, ...]:
        """Names that its workspace lacks."""
        marker = MARKER.match(self.above)
        return tuple((marker["without"] or "").replace(",", " ").split()) if marker else ()


def pages() -> list[Path]:
    """The pages beside the code, and those of docs/."""
    beside = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md")
    return [*(REPO / name for name in beside), *sorted((REPO / "docs").glob("*.md"))]


def fences(page: Path, text: str | None = None) -> Iterator[Fence]:
    """The fences of a page. ValueError if one is not closed."""
    lines = (page.read_text() if text is None else text).splitlines()
    at = 0
    while at < len(lines):
        opening = OPENING.match(lines[at])
        if opening is None:
            at += 1
            continue
        closing = re.compile(rf"^ *{re.escape(opening['ticks'])}{re.escape(opening['ticks'][0])}* *$")
        end = next((line for line in range(at + 1, len(lines)) if closing.match(lines[line])), None)
        if end is None:
            raise ValueError(f"{page.name}:{at + 1}: the fence is not closed")
        inside = "".join(line.removeprefix(opening["indent"]) + "\n" for line in lines[at + 1 : end])
        yield Fence(page, at + 1, lines[at - 1] if at else "", opening["language"], inside)
        at = end + 1


def complaint(fence: Fence) -> str | None:
    """What is wrong with the fence's language or marker."""
    if fence.language not in LANGUAGES:
        return f"{fence.at}: {fence.language!r} after the ticks, wanted one of {', '.join(LANGUAGES)}"
    if fence.language not in RUN:
        return None
    if not MARKER.match(fence.above):
        return (
            f"{fence.at}: above it stands {fence.above!r}, wanted a marker with what it needs (tests/helpers/fences.py)"
        )
    if unknown := set(fence.without) - set(WORKSPACE):
        return f"{fence.at}: no workspace has {', '.join(sorted(unknown))}"
    if "runnable: without" in fence.above and not fence.without:
        return f"{fence.at}: without what?"
    return None
