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
    add_bos: prompts begin with the begin token, as they did for the model card.
    limit: asks only the first so many examples of each group.
    too_long: what an example is whose prompt leaves the model no position for an answer: "wrong", it is not asked and counts as
        wrong, unless all examples of its task are; "refuse", an error before anything runs.
    subjects: asks only these groups: subjects of MMLU, tasks of BBH, languages of TydiQA.
    seed: draws the examples of tasks that ask a sample, and what is sampled of the model.
    allow_code_execution: runs the programs that the model writes, each in a process with little room and no network.
    annotations: the file of a judge's preferences, for AlpacaFarm.

    The metadata of each field are the settings of its flag for argparse.
    """

    format: str = option(
        "chat", "prompts in the chat format, or as the same scripts made them for base models", choices=FORMATS
    )
    add_bos: bool = option(True, "no begin token in front of prompts, as in the scripts of June 2023", flag="--no_bos")
    limit: int | None = option(
        None,
        "ask only the first N examples, or the first N of each subject, language, task of BBH, temperature of humaneval or "
        "dataset of alpaca_farm",
        metavar="N",
    )
    subjects: Sequence[str] | None = option(
        None, "ask only these subjects of MMLU, tasks of BBH or languages of TydiQA", nargs="+", metavar="SUBJECT"
    )
    too_long: str = option(
        "wrong",
        "examples whose prompts do not fit the model: count them as wrong, or refuse the task before anything runs",
        choices=TOO_LONG,
    )
    seed: int = option(42, "draws the examples of tasks that ask a sample, and what is sampled", metavar="S")
    allow_code_execution: bool = option(
        False,
        "humaneval: run the programs that the model writes, each in a process with little memory and time; else they are "
        "only written to --out",
    )
    annotations: str | None = option(
        None, "alpaca_farm: a judge's preferences, from which the win rate is computed", metavar="FILE"
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
