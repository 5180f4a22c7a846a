"""What a task is: data → examples → requests → verdicts → scores, each step a method without side effects.

Knows no engine and no files of results: `run.py` runs tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from baize_engine.evaluation.statistics import mean_of_groups
from baize_engine.generation.params import SamplingParams


class Encoder(Protocol):
    """What a task needs of a tokenizer; `text.tokenizer.Tokenizer` is one."""

    def encode(self, text: str, add_bos: bool | None = None, *, allow_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Example:
    """One item of a task; each task adds what it asks about.

    name: unique within the task, such as "astronomy/17". group: what `--subjects` chooses and `--limit` counts by: a subject,
    a task of BBH, a language; "" where the task has no groups.
    """

    name: str
    group: str


@dataclass(frozen=True)
class Choice:
    """Asks which of `options` comes next after the text `prompt`, by the log-probabilities of their first tokens.

    shorter: asked in place of a prompt that has more tokens than the model has positions.
    """

    prompt: str
    options: tuple[str, ...]
    shorter: str | None = None


@dataclass(frozen=True)
class Generation:
    """Asks for params.n texts after the text `prompt`.

    parse_special: special tokens spelled in the prompt, such as "<s>", become their ids, as for `Engine.generate`.
    """

    prompt: str
    params: SamplingParams
    parse_special: bool = False


Request = Choice | Generation


@dataclass(frozen=True)
class Verdict:
    """What came out for one example.

    prediction: what was read from the outputs, as JSON. gold: what is right, as JSON. measures: {name: value}, what scores are
    made of, each from 0 (wrong) to 1 (right), such as {"right": 1.0}. Empty where nothing here can judge.
    """

    prediction: Any
    gold: Any
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """An example and its measures, which a resumed run reads from its records: what scores are computed from."""

    name: str
    group: str
    measures: dict[str, float]


@dataclass(frozen=True)
class Score:
    """A figure of the table.

    Attributes:
        metric: its name.
        value: in percent; None where nothing was judged.
        standard_error: in percentage points; None where there is none.
        count: how many examples it is of.
        card: the model card's figure, in percent.
    """

    metric: str
    value: float | None
    standard_error: float | None
    count: int
    card: float | None = None


E = TypeVar("E", bound=Example)
T = TypeVar("T")


class Task(ABC, Generic[E]):
    """A row of the table. Instances hold a task's settings and no data.

    name: as `--tasks` takes it. verdicts_change: whether a verdict with measures may be another one in a later run, which then
    judges it again.
    """

    name: str
    verdicts_change = False

    @abstractmethod
    def examples(self, data: Path, seed: int) -> list[E]:
        """All examples, in order, read from the folder `data` as downloaded; `seed` draws samples where the card took some.

        Raises DataError: a missing file with its source address and where it was looked for, a damaged one with the line.
        """

    @abstractmethod
    def request(self, example: E, chat: bool, encoder: Encoder) -> Request:
        """What is asked. chat: in the chat format, as the card's figures were made; else the raw prompt of a base model."""

    @abstractmethod
    def judge(self, example: E, outputs: Sequence[str]) -> Verdict:
        """The verdict on the texts that were generated, or on the option that was chosen."""

    @abstractmethod
    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        """The task's figures."""

    def files(self, examples: Sequence[E], verdicts: Sequence[Verdict]) -> dict[str, str]:
        """Files that are written beside the records: {name: text}. The verdicts are those of the examples, in their order."""
        return {}


def chat_prompt(user: str, reply: str) -> str:
    """One turn of open-instruct's chat format, and the beginning of the reply, which the model continues."""
    return f"<|user|>\n{user}\n<|assistant|>\n{reply}"


def drawn(items: Sequence[T], most: int, random: Random) -> list[T]:
    """A sample of `most` items in the order of `random`, or all in their own order if there are no more."""
    return random.sample(items, most) if len(items) > most else list(items)


def newline_id(encoder: Encoder) -> int:
    """The id that ends an answer of one line: the last of a line break's ids, as sentencepiece puts a space in front."""
    return encoder.encode("\n", add_bos=False)[-1]


def mean_score(
    metric: str, judged: Sequence[Judged], measure: str, card: float | None, by_group: bool = False
) -> Score:
    """The mean of a measure over the examples that have it, or, `by_group`, over their groups, each of which counts alike."""
    groups: dict[str, list[float]] = {}
    for each in judged:
        if measure in each.measures:
            groups.setdefault(each.group if by_group else "", []).append(100 * each.measures[measure])
    value, error = mean_of_groups(groups) if groups else (None, None)
    return Score(metric, value, error, sum(map(len, groups.values())), card)
