"""Which examples of which tasks are asked. Reads the data; knows no engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_engine.errors import DataError, RequestError
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.task import Example, Task
from baize_engine.printable import shown


@dataclass(frozen=True)
class Selection:
    """The examples of a task that are asked, in order."""

    task: Task[Any]
    examples: list[Example]


def select(tasks: Sequence[Task[Any]], data: Path, options: EvaluationOptions) -> list[Selection]:
    """Reads the examples of all tasks from the folder `data`, and leaves out what `options` does not ask for.

    DataError names all data that are missing or damaged, and their tasks; RequestError where no task has one of the subjects,
    or a task has none of them.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder, wanted the one with the tasks' data")
    selections, wrong = [], dict[str, list[str]]()  # what is wrong: its tasks
    for task in tasks:
        try:
            selections.append(Selection(task, _examples(task, data, options.seed)))
        except DataError as error:
            wrong.setdefault(str(error), []).append(task.name)
    if wrong:
        raise DataError("; ".join(f"{', '.join(names)}: {error}" for error, names in wrong.items()))
    if options.subjects is not None:
        selections = _of_subjects(selections, options.subjects)
    if options.limit is not None:
        selections = [Selection(one.task, _first(one.examples, options.limit)) for one in selections]
    return selections


def _examples(task: Task[Any], data: Path, seed: int) -> list[Example]:
    examples: list[Example] = task.examples(data, seed)
    if not examples:
        raise DataError(f"{data} has no example of it")
    return examples


def _of_subjects(selections: Sequence[Selection], subjects: Sequence[str]) -> list[Selection]:
    there = dict.fromkeys(example.group for one in selections for example in one.examples if example.group)
    for subject in subjects:
        if subject not in there:
            raise RequestError(f"subjects has {shown(subject)!r}, wanted some of {', '.join(there) or 'none'}")
    found = [
        Selection(one.task, [example for example in one.examples if example.group in subjects]) for one in selections
    ]
    for one in found:
        if not one.examples:
            raise RequestError(f"{one.task.name} has none of the subjects: leave it out of the tasks")
    return found


def _first(examples: Sequence[Example], limit: int) -> list[Example]:
    """The first `limit` of each group."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for example in examples:
        if seen[example.group] < limit:
            seen[example.group] += 1
            kept.append(example)
    return kept
