"""AlpacaFarm: instructions whose answers a judge compares with text-davinci-003's. Writes what the judge reads; asks none.

Settings: open-instruct's eval/alpaca_farm_eval.py (commit 7c5ee77a1). The judge is alpaca_eval, and its annotations, if the
user has them made, give the win rate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_engine.errors import DataError
from baize_engine.evaluation.data import json_value, locate, objects, read_text, texts
from baize_engine.evaluation.statistics import mean
from baize_engine.evaluation.task import (
    Encoder,
    Example,
    Generation,
    Judged,
    Score,
    Task,
    Verdict,
    chat_prompt,
    mean_score,
)
from baize_engine.generation.params import SamplingParams
from baize_engine.printable import shown_json

SOURCE = "https://huggingface.co/datasets/tatsu-lab/alpaca_farm/resolve/main/alpaca_farm_evaluation.json"
FILES = ("alpaca_farm_evaluation.json", "alpaca_farm/alpaca_farm_evaluation.json", "alpaca_eval.json")
CARD = 28.7
GENERATOR = "baize_engine"  # what alpaca_eval calls the model in its table


@dataclass(frozen=True)
class Annotation:
    """A judge's preference in a pair of outputs. win: from 0 (davinci's is better) to 1 (the model's is); 0.5 is a draw.

    output: the model's text that was judged; None where the file does not have it.
    """

    win: float
    output: str | None


@dataclass(frozen=True)
class Instruction(Example):
    """instruction, input ("" if there is none): the file's. annotations: of this instruction. group: the file's dataset."""

    instruction: str
    input: str
    annotations: tuple[Annotation, ...] = ()


class AlpacaFarm(Task[Instruction]):
    """annotations: alpaca_eval's annotations.json on the outputs of an earlier run, the model's as its second output."""

    name = "alpaca_farm"
    verdicts_change = True  # with the annotations

    def __init__(self, annotations: Path | None = None) -> None:
        self.annotations = annotations

    def examples(self, data: Path, seed: int) -> list[Instruction]:
        path = locate(data, FILES, SOURCE)
        annotations = {} if self.annotations is None else read_annotations(self.annotations)
        examples: list[Instruction] = []
        for at, record in objects(json_value(read_text(path), str(path)), str(path)):
            instruction, extra, dataset = _texts(record, at)
            known = tuple(annotations.get(user_text(instruction, extra), ()))
            examples.append(Instruction(str(len(examples)), dataset, instruction, extra, known))
        return examples

    def request(self, example: Instruction, chat: bool, encoder: Encoder) -> Generation:
        text = user_text(example.instruction, example.input)
        return Generation(chat_prompt(text, "") if chat else text, SamplingParams(max_new_tokens=2048))

    def judge(self, example: Instruction, outputs: Sequence[str]) -> Verdict:
        """Measures the win if this very output was annotated."""
        output = outputs[0].removeprefix(" ")  # as transformers decodes a text that begins with a space
        wins = [each.win for each in example.annotations if each.output in (None, output)]
        return Verdict(output, None, {"win": mean(wins)[0]} if wins else {})

    def files(self, examples: Sequence[Instruction], verdicts: Sequence[Verdict]) -> dict[str, str]:
        """The outputs, as alpaca_eval reads them."""
        pairs = zip(examples, verdicts, strict=True)
        found = [judge_record(example, verdict.prediction, GENERATOR) for example, verdict in pairs]
        return {"alpaca_farm_outputs.json": json.dumps(found, indent=1) + "\n"}

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [mean_score("win rate", judged, "win", CARD)]


def user_text(instruction: str, extra: str) -> str:
    """What the user says. extra: the record's "input"."""
    return f"{instruction.strip()}\n\n{extra.strip()}" if extra else instruction


def judge_record(example: Instruction, output: str, generator: str) -> dict[str, str]:
    """An item of the list that alpaca_eval takes as model outputs. generator: the model's name."""
    record = {"instruction": example.instruction, "input": example.input, "output": output, "generator": generator}
    return record | ({"dataset": example.group} if example.group else {})


def read_annotations(path: Path) -> dict[str, list[Annotation]]:
    """{text of the user: its annotations} of an annotations.json. DataError says which item is wrong."""
    found: dict[str, list[Annotation]] = {}
    for at, record in objects(json_value(read_text(path), str(path)), str(path)):
        instruction, extra, _ = _texts(record, at)
        preference, output = record.get("preference"), record.get("output_2")
        if preference is None or preference != preference:  # null or NaN: the judge's answer could not be read
            continue
        annotation = Annotation(_win(preference, at), output if isinstance(output, str) else None)
        found.setdefault(user_text(instruction, extra), []).append(annotation)
    return found


def _win(preference: Any, at: str) -> float:
    """alpaca_eval's preference, from 1 for the first output to 2 for the second, as a win; 0 was its first mark of a draw."""
    is_number = isinstance(preference, (int, float)) and not isinstance(preference, bool)
    if not is_number or not (preference == 0 or 1 <= preference <= 2):
        raise DataError(f"{at}.preference is {shown_json(preference)}, wanted a number from 1 to 2, or 0")
    return preference - 1.0 if preference else 0.5


def _texts(record: dict[str, Any], at: str) -> list[str]:
    """Instruction, input and dataset of a record; the last two may be absent."""
    return texts({"input": "", "dataset": ""} | record, ("instruction", "input", "dataset"), at)
