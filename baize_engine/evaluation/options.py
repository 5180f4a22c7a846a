"""EvaluationOptions: what of the tasks is asked, and how, checked where it is made. Knows no engine, no task and no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baize_engine import plain
from baize_engine.errors import RequestError
from baize_engine.fields import option
from baize_engine.options import count

FORMATS = ("chat", "raw")
TOO_LONG = ("wrong", "refuse")
MOST_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class EvaluationOptions:
    """What of the tasks is asked, and how. Raises RequestError, which names the field, where a value is wrong.

    format: "chat", the prompts of the model card; "raw", those that the same scripts made for base models.
    add_bos: prompts begin with the BOS token, as they did for the model card.
    limit: asks only the first so many examples of each group.
    too_long: what becomes of an example whose prompt leaves the model no position for an answer: "wrong": it is not asked and
        counts as wrong, unless all examples of its task are too long; "refuse": an error before anything runs.
    subjects: asks only these groups: subjects of MMLU, tasks of BBH, languages of TydiQA.
    seed: for choosing the examples of tasks that use a sample of them, and for sampling from the model.
    allow_code_execution: runs the programs that the model writes, each in a process with limited memory and time.
    annotations: the file of a judge's preferences, for AlpacaFarm.

    The metadata of each field are the settings of its flag for argparse.
    """

    format: str = option(
        "chat", "prompts in the chat format, or raw, as the same scripts made them for base models", choices=FORMATS
    )
    add_bos: bool = option(
        True, "do not put the BOS token before prompts, as in the scripts of June 2023", flag="--no_bos"
    )
    limit: int | None = option(
        None,
        "ask only the first N examples; where a task has groups (MMLU's subjects, BBH's tasks, TydiQA's languages, humaneval's "
        "temperatures, alpaca_farm's datasets), the first N of each",
        metavar="N",
    )
    subjects: Sequence[str] | None = option(
        None, "ask only these subjects of MMLU, tasks of BBH or languages of TydiQA", nargs="+", metavar="SUBJECT"
    )
    too_long: str = option(
        "wrong",
        "if an example's prompt is too long for the model: count it as wrong, or refuse the task before anything runs",
        choices=TOO_LONG,
    )
    seed: int = option(42, "seed for choosing examples and for sampling completions", metavar="S")
    allow_code_execution: bool = option(
        False,
        "humaneval: run the programs that the model writes, each in a process with limited memory and time; without this they "
        "are only written to --out",
    )
    annotations: str | None = option(
        None, "alpaca_farm: file of a judge's preferences, from which the win rate is computed", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise RequestError(f"format is {self.format!r}, wanted {' or '.join(FORMATS)}")
        if self.too_long not in TOO_LONG:
            raise RequestError(f"too_long is {self.too_long!r}, wanted {' or '.join(TOO_LONG)}")
        for name in ("add_bos", "allow_code_execution"):
            value = plain.number(getattr(self, name))
            if not isinstance(value, bool):
                raise RequestError(f"{name} is {value!r}, wanted True or False")
            object.__setattr__(self, name, value)
        if self.limit is not None:
            object.__setattr__(self, "limit", count("limit", self.limit, 1))
        object.__setattr__(self, "seed", count("seed", self.seed, 0, MOST_SEED))
        if self.subjects is not None:
            object.__setattr__(self, "subjects", _names(self.subjects))
        if self.annotations is not None and not (isinstance(self.annotations, str) and self.annotations):
            raise RequestError(f"annotations is {self.annotations!r}, wanted the path of a file")


def _names(given: Any) -> tuple[str, ...]:
    names = None if isinstance(given, str) else plain.items(given)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RequestError(f"subjects is {given!r}, wanted a list of names")
    return tuple(dict.fromkeys(names))
