"""GSM8K: grade-school arithmetic (Cobbe et al., 2021), 200 of the 1,319 test questions, after eight examples.

Prompts, sample and reading of answers are those of the model card: open-instruct's evaluation of August 2023 (7c5ee77a1), its
spelling "Quesion" in the examples of gsm_direct included. Knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from baize_engine.errors import DataError
from baize_engine.evaluation.data import json_lines, locate, read_text, texts
from baize_engine.evaluation.exact_match import exact_match
from baize_engine.evaluation.gsm_shots import SHOTS
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
    newline_id,
)
from baize_engine.generation.params import SamplingParams
from baize_engine.printable import brief

FILES = ("gsm8k_test.jsonl", "test.jsonl")
SOURCE = "https://github.com/openai/grade-school-math (grade_school_math/data/test.jsonl)"
SAMPLE = 200
MAX_NEW_TOKENS = 512
CARD = {"gsm_direct": 4.5, "gsm_cot": 8.5}


@dataclass(frozen=True)
class GsmExample(Example):
    """A question; its name is its place in the file, from 0. answer: a number without commas."""

    question: str
    answer: str


class Gsm(Task[GsmExample]):
    """cot: whether the examples reason before they answer."""

    def __init__(self, cot: bool) -> None:
        self.cot = cot
        self.name = "gsm_cot" if cot else "gsm_direct"

    def examples(self, data: Path, seed: int) -> list[GsmExample]:
        every = read(locate(data, FILES, SOURCE))
        return drawn(every, SAMPLE, Random(seed))

    def request(self, example: GsmExample, chat: bool, encoder: Encoder) -> Generation:
        params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, stop_token_ids=(newline_id(encoder),))
        return Generation(prompt(example.question, self.cot, chat), params)

    def judge(self, example: GsmExample, outputs: Sequence[str]) -> Verdict:
        prediction = number(outputs[0])
        return Verdict(prediction, example.answer, {"right": float(exact_match(prediction, example.answer))})

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [mean_score("exact match", judged, "right", CARD[self.name])]


def read(path: Path) -> list[GsmExample]:
    """The questions of a file of JSON lines, whose answers end in "#### " and a number. Raises DataError."""
    found: list[GsmExample] = []
    for line, record in json_lines(read_text(path), str(path)):
        where = f"{path}, line {line}"
        question, reasoning = texts(record, ("question", "answer"), where)
        answer = without_commas("".join(reasoning.split("####")[1:2]).strip())
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", answer):
            raise DataError(f'{where}: the answer ends in {brief(reasoning[-40:])}, wanted "#### " and a number')
        found.append(GsmExample(str(len(found)), "", question, answer))
    return found


def prompt(question: str, cot: bool, chat: bool) -> str:
    """The prompt of a question, after the examples."""
    if cot:
        shots = [f"Question: {s.question}\nAnswer: {s.reasoning} So the answer is {s.answer}." for s in SHOTS]
    else:
        shots = [f"Quesion: {s.question}\nAnswer: {s.answer}" for s in SHOTS]
    text = "\n\n".join(["Answer the following questions.", *shots, f"Question: {question.strip()}"])
    return chat_prompt(text, "Answer:") if chat else f"{text}\nAnswer:"


def number(output: str) -> str:
    """The last number of a text, without its sign if it has no decimals; without any number, the whole text."""
    output = without_commas(output)
    numbers: list[str] = re.findall(r"[-+]?\d*\.\d+|\d+", output)
    return numbers[-1] if numbers else output


def without_commas(text: str) -> str:
    """The text without the commas between digits, as in 1,000,000; of those around a single digit the second stays."""
    return re.sub(r"(\d),(\d)", r"\1\2", text)
