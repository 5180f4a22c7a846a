"""The rows of the model card's table by their names, in its order. Loads a task's module when the task is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_engine.errors import RequestError
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.printable import shown

if TYPE_CHECKING:
    from baize_engine.evaluation.task import Task

ALL = "card"  # in place of names
HUMANEVAL = "humaneval"  # the task that runs programs


@dataclass(frozen=True)
class Row:
    """A task by its name. figures: what the card has, in percent; several of one task have names."""

    name: str
    figures: str
    make: Callable[[EvaluationOptions], Task[Any]]


def _mmlu(shots: int) -> Task[Any]:
    from baize_engine.evaluation.mmlu import Mmlu

    return Mmlu(shots)


def _gsm(cot: bool) -> Task[Any]:
    from baize_engine.evaluation.gsm import Gsm

    return Gsm(cot)


def _bbh(cot: bool) -> Task[Any]:
    from baize_engine.evaluation.bbh import Bbh

    return Bbh(cot)


def _tydiqa(passage: bool) -> Task[Any]:
    from baize_engine.evaluation.tydiqa import TydiQa

    return TydiQa(passage)


def _humaneval(options: EvaluationOptions) -> Task[Any]:
    from baize_engine.evaluation.code_execution import CodeRunner
    from baize_engine.evaluation.humaneval import HumanEval

    return HumanEval(CodeRunner() if options.allow_code_execution else None)


def _alpaca_farm(options: EvaluationOptions) -> Task[Any]:
    from baize_engine.evaluation.alpaca_farm import AlpacaFarm

    return AlpacaFarm(None if options.annotations is None else Path(options.annotations))


# open-instruct's README of August 2023, commit 7c5ee77a1
ROWS = (
    Row("mmlu_0shot", "43.5", lambda _: _mmlu(0)),
    Row("mmlu_5shot", "41.5", lambda _: _mmlu(5)),
    Row("gsm_direct", "4.5", lambda _: _gsm(False)),
    Row("gsm_cot", "8.5", lambda _: _gsm(True)),
    Row("bbh_direct", "35.3", lambda _: _bbh(False)),
    Row("bbh_cot", "36.7", lambda _: _bbh(True)),
    Row("tydiqa_gold", "33.9", lambda _: _tydiqa(True)),
    Row("tydiqa_closed", "9.0", lambda _: _tydiqa(False)),
    Row(HUMANEVAL, "pass@1 14.5, pass@10 27.3", _humaneval),
    Row("alpaca_farm", "28.7", _alpaca_farm),
)


def tasks(wanted: str | Sequence[str | Task[Any]], options: EvaluationOptions) -> list[Task[Any]]:
    """The tasks of these names, or all for "card"; tasks that are given themselves stay as they are.

    RequestError where a name is no task's, or two tasks have one name.
    """
    rows = {row.name: row for row in ROWS}
    found: list[Task[Any]] = []
    for each in [wanted] if isinstance(wanted, str) else wanted:
        if not isinstance(each, str):
            found.append(each)
        elif each == ALL:
            found += [row.make(options) for row in ROWS]
        elif each in rows:
            found.append(rows[each].make(options))
        else:
            raise RequestError(f"there is no task {shown(each)!r}, wanted {ALL} or some of {', '.join(rows)}")
    names = [task.name for task in found]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"the task {name} is there twice")
    if not found:
        raise RequestError(f"tasks is empty, wanted {ALL} or some of {', '.join(rows)}")
    return found
