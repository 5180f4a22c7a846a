"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al., 2021), the answer being the likeliest of four letters.

Prompts are those of the model card: open-instruct's evaluation of August 2023 (7c5ee77a1). That code read the tables with
pandas, which takes some cells for missing ones and prints them as "nan" (NA, null, an empty cell; since version 2.0 None too),
and the cells of a column of numbers alone for numbers (05 as 5). Here a cell is its text. Of the 14,327 questions pandas 1.5
reads all as they are written, pandas 2.0 all but ten, where an option is None; it is not known which version the card used.
Knows no engine.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baize_engine.errors import DataError
from baize_engine.evaluation.data import Part, locate, read_parts
from baize_engine.evaluation.task import (
    Choice,
    Encoder,
    Example,
    Judged,
    Score,
    Task,
    Verdict,
    chat_prompt,
    mean_score,
)
from baize_engine.printable import brief, shown

FILES = ("mmlu_csv.tar.gz", "data.tar", "mmlu", "data")
SOURCE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
LETTERS = ("A", "B", "C", "D")
MOST_TOKENS = 2048  # of a prompt, without the BOS token
CARD = {0: 43.5, 5: 41.5}  # by shots


@dataclass(frozen=True)
class MmluQuestion:
    """A line of a table. answer: a letter."""

    text: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class MmluExample(Example):
    """A question of the subject `group`. shots: the subject's questions that may come before it, with their answers."""

    question: MmluQuestion
    shots: tuple[MmluQuestion, ...]


class Mmlu(Task[MmluExample]):
    """shots: questions with answers before each question, of which as many are left out, from the last, as do not fit."""

    def __init__(self, shots: int) -> None:
        self.shots = shots
        self.name = f"mmlu_{shots}shot"

    def examples(self, data: Path, seed: int) -> list[MmluExample]:
        path = locate(data, FILES, SOURCE)
        asked = read_parts(path, "test", "_test.csv")
        known = read_parts(path, "dev", "_dev.csv") if self.shots else {}
        found = []
        for subject, part in asked.items():
            shots = self._shots(path, known, subject) if self.shots else ()
            for number, question in enumerate(questions(part)):
                found.append(MmluExample(f"{subject}/{number}", subject, question, shots))
        return found

    def _shots(self, path: Path, known: dict[str, Part], subject: str) -> tuple[MmluQuestion, ...]:
        if subject not in known:
            raise DataError(f"{path} has no file dev/{subject}_dev.csv, wanted one as for test/{subject}_test.csv")
        found = questions(known[subject])
        if len(found) < self.shots:
            raise DataError(f"{known[subject].where}: {len(found)} questions, wanted at least {self.shots}")
        return tuple(found[: self.shots])

    def request(self, example: MmluExample, chat: bool, encoder: Encoder) -> Choice:
        shots = len(example.shots)
        while len(encoder.encode(prompt(example, shots, chat), False)) > MOST_TOKENS and shots:
            shots -= 1
        # with the BOS token it may have a token too many
        shorter = prompt(example, shots - 1, chat) if shots else None
        return Choice(prompt(example, shots, chat), LETTERS, shorter)

    def judge(self, example: MmluExample, outputs: Sequence[str]) -> Verdict:
        gold = example.question.answer
        return Verdict(outputs[0], gold, {"right": float(outputs[0] == gold)})

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [mean_score("accuracy", judged, "right", CARD.get(self.shots))]


def questions(part: Part) -> list[MmluQuestion]:
    """The lines of a table without a header: question, four options, the right letter. Raises DataError."""
    rows = csv.reader(io.StringIO(part.text, newline=""))
    found, line = [], 1
    try:
        for cells in rows:
            where, line = f"{part.where}, line {line}", rows.line_num + 1
            if not cells:
                continue
            if len(cells) != 2 + len(LETTERS):
                raise DataError(f"{where}: {len(cells)} cells, wanted {2 + len(LETTERS)}")
            text, *options, answer = cells
            if answer not in LETTERS:
                raise DataError(f"{where}: the answer is {brief(answer)}, wanted one of {', '.join(LETTERS)}")
            found.append(MmluQuestion(text, tuple(options), answer))
    except csv.Error as error:
        raise DataError(f"{part.where}, line {line}: {shown(str(error))}") from None
    return found


def prompt(example: MmluExample, shots: int, chat: bool) -> str:
    """The prompt of a question after the first `shots` of its examples. The two spaces before the subject are the card's."""
    subject = example.group.replace("_", " ")
    asked = "".join(f"{_shown(shot)} {shot.answer}\n\n" for shot in example.shots[:shots]) + _shown(example.question)
    text = f"The following are multiple choice questions (with answers) about  {subject}.\n\n{asked}"
    return chat_prompt(text, "The answer is:") if chat else text


def _shown(question: MmluQuestion) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True))
    return f"{question.text}{options}\nAnswer:"
