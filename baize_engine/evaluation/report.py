"""What came out of the tasks: a table for people, and results.json. Knows no engine."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baize_engine.errors import OutputError
from baize_engine.evaluation.files import place, records_name
from baize_engine.evaluation.task import Score
from baize_engine.generation.usage import Usage

RESULTS = "results.json"
COLUMNS = ["task", "metric", "score", "error", "card", "examples", "seconds", "prompt", "computed", "generated"]


@dataclass(frozen=True)
class TaskResult:
    """What came out of a task.

    Attributes:
        task: its name.
        scores: its figures.
        examples: how many there were.
        groups: the figures of each group, where there are several.
        failed: how many examples have an error in place of an answer; they do not count in the scores.
        too_long: how many were not asked; they count as wrong.
        resumed: how many were done by earlier runs.
        seconds: of this run, that is, of the other examples.
        usage: tokens and steps of this run.
    """

    task: str
    scores: list[Score]
    examples: int
    groups: dict[str, list[Score]] = field(default_factory=dict)
    failed: int = 0
    too_long: int = 0
    resumed: int = 0
    seconds: float = 0.0
    usage: Usage = field(default_factory=Usage)


def check_out(out: Path, tasks: Iterable[str], resume: bool) -> None:
    """OutputError where `out` is not a folder, or has results or records of these tasks, unless they are resumed."""
    if out.exists() and not out.is_dir():
        raise OutputError(errno.ENOTDIR, f"{out} is not a folder: name another --out")
    for name in [] if resume else [RESULTS, *(records_name(task) for task in tasks)]:
        if (out / name).exists():
            raise OutputError(errno.EEXIST, f"{out / name} exists: use --resume to continue, or name another --out")


def table(results: Sequence[TaskResult]) -> list[str]:
    """The lines of the table, and below it a line for whatever is unusual about a task."""
    rows = [COLUMNS, *(row for result in results for row in _rows(result))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines.append(
        "score, its standard error and the model card's figure in percent; prompt, computed, generated: numbers of tokens"
    )
    for result in results:
        if result.usage.speculation:
            lines.append(f"{result.task}: speculation: {result.usage.speculation} (estimated)")
        if result.resumed:
            lines.append(
                f"{result.task}: {result.resumed} examples were answered before; seconds and tokens are the others'"
            )
        if result.too_long:
            lines.append(
                f"{result.task}: {result.too_long} of {result.examples} examples are too long and count as wrong"
            )
        if result.failed:
            lines.append(f"{result.task}: {result.failed} of {result.examples} examples failed and do not count")
    return lines


def _rows(result: TaskResult) -> list[list[str]]:
    """A row for each score; what is the whole task's stands in the first."""
    usage = result.usage
    tokens = [f"{count:,}" for count in (usage.prompt_tokens, usage.computed_tokens, usage.generated_tokens)]
    facts = [f"{result.examples:,}", f"{result.seconds:.1f}", *tokens]
    if not result.scores:
        return [[result.task, "", "", "", "", *facts]]
    rows = []
    for number, score in enumerate(result.scores):
        figures = [
            _shown(each, digits) for each, digits in ((score.value, 2), (score.standard_error, 2), (score.card, 1))
        ]
        rows.append(["" if number else result.task, score.metric, *figures, *([""] * len(facts) if number else facts)])
    return rows


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def write_results(out: Path, facts: dict[str, Any], results: Sequence[TaskResult]) -> None:
    """Writes OUT/results.json, in place of an earlier one. facts: what stands there beside the tasks' results, as JSON."""
    tasks = [
        {**{name: value for name, value in asdict(result).items() if name != "usage"}, **asdict(result.usage)}
        for result in results
    ]
    place(out / RESULTS, f"{json.dumps({**facts, 'tasks': tasks}, indent=1)}\n".encode())
