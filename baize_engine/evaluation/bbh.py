"""BIG-Bench Hard: 27 tasks (Suzgun et al., 2022), 40 questions of each, after three examples.

Prompts and reading of answers are those of the model card: open-instruct's evaluation of August 2023 (7c5ee77a1). It drew the
questions with seed 42 from the tasks in the order in which the file system listed them; here they come in order of their names,
so that the same questions are drawn everywhere, and the card's are others of the same tasks.
Its list of stop ids was nested wrongly and stopped nothing, so that answers continue to the EOS token or to 512 tokens. They
are read up to the first empty line, which is no stop string here: an answer that begins with empty lines is read after them.
Knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from baize_engine.errors import DataError
from baize_engine.evaluation.data import Part, json_value, locate, read_parts, texts
from baize_engine.evaluation.exact_match import exact_match
from baize_engine.evaluation.task import (
    Encoder,
    Example,
    Generation,
    Judged,
    Score,
    Task,
    Verdict,
    chat_prompt,
    drawn,
    mean_score,
)
from baize_engine.generation.params import SamplingParams
from baize_engine.printable import brief, kind

FILES = ("bbh.tar.gz", "bbh", "BIG-Bench-Hard", "BIG-Bench-Hard-main")
SOURCE = "https://github.com/suzgunmirac/BIG-Bench-Hard (folders bbh and cot-prompts)"
SAMPLE = 40  # of each task
MAX_NEW_TOKENS = 512
CARD = {"bbh_direct": 35.3, "bbh_cot": 36.7}
HEAD = 2  # lines of a file of examples: a notice that it must not be trained on, and a rule
MARK = "So the answer is"


@dataclass(frozen=True)
class BbhExample(Example):
    """A question of the task `group`; its name ends in its place in the file, from 0. shots: what comes before it."""

    shots: str
    question: str
    answer: str


class Bbh(Task[BbhExample]):
    """cot: whether the examples reason before they answer."""

    def __init__(self, cot: bool) -> None:
        self.cot = cot
        self.name = "bbh_cot" if cot else "bbh_direct"

    def examples(self, data: Path, seed: int) -> list[BbhExample]:
        path = locate(data, FILES, SOURCE)
        tasks, shots = read_parts(path, "bbh", ".json"), read_parts(path, "cot-prompts", ".txt")
        if odd := sorted(tasks.keys() ^ shots.keys()):
            raise DataError(f"{path}: {odd[0]} is in one of the folders bbh and cot-prompts, wanted it in both")
        random, found = Random(seed), []
        for task, part in tasks.items():
            every = read(part, task, shots_of(shots[task], self.cot))
            found += drawn(every, SAMPLE, random)
        return found

    def request(self, example: BbhExample, chat: bool, encoder: Encoder) -> Generation:
        return Generation(prompt(example, chat), SamplingParams(max_new_tokens=MAX_NEW_TOKENS))

    def judge(self, example: BbhExample, outputs: Sequence[str]) -> Verdict:
        prediction = answer(outputs[0])
        return Verdict(prediction, example.answer, {"right": float(exact_match(prediction, example.answer))})

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [mean_score("exact match", judged, "right", CARD[self.name], by_group=True)]


def read(part: Part, task: str, shots: str) -> list[BbhExample]:
    """The questions of a task's file. Raises DataError."""
    content = json_value(part.text, part.where)
    listed = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise DataError(f'{part.where}: no list "examples" in it')
    found = []
    for number, record in enumerate(listed):
        where = f"{part.where}, example {number}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: {kind(record)}, wanted an object")
        question, gold = texts(record, ("input", "target"), where)
        found.append(BbhExample(f"{task}/{number}", task, shots, question, gold))
    return found


def shots_of(part: Part, cot: bool) -> str:
    """The task's instruction and its examples; unless `cot`, their answers without the reasoning. Raises DataError."""
    lines = part.text.replace("\r\n", "\n").split("\n", HEAD)
    text = lines[HEAD] if len(lines) > HEAD else ""
    fields = text.split("\n\n")
    for n, field in enumerate(fields):
        if field.startswith("Q:") and not cot:
            question, answered, _ = field.partition("\nA:")
            _, marked, short = field.rpartition(MARK)
            if not answered or not marked:
                raise DataError(f'{part.where}: example {brief(field)} lacks "A:" or "{MARK}"')
            fields[n] = f"{question.strip()}\nA: {short.strip()}"
    return "\n\n".join(fields).strip()


def prompt(example: BbhExample, chat: bool) -> str:
    """The prompt of a question, after the examples."""
    text = f"{example.shots}\n\nQ: {example.question}"
    return chat_prompt(text, "A:") if chat else f"{text}\nA:"


def answer(output: str) -> str:
    """What stands between "So the answer is" and the next period in the first paragraph, or else the paragraph."""
    paragraph = output.strip().split("\n\n")[0].strip()
    found = re.search(rf"{MARK} (.*?)\.", paragraph)
    return found[1].strip() if found else paragraph
