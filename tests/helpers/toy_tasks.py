"""Two small tasks of either kind of request, and their data: what tests of the evaluation run in place of the card's tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baize_engine.evaluation.data import json_lines, locate, read_text, texts
from baize_engine.evaluation.task import (
    Choice,
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

FILE = "toy.jsonl"
GROUPS = ("cats", "dogs")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "it"]


@dataclass(frozen=True)
class Item(Example):
    text: str
    gold: str


def write_data(folder: Path, each: int = 3) -> Path:
    """The data of both tasks: `each` items a group, whose prompts begin alike."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"group": group, "text": f"{group}: {' '.join(WORDS)} {' '.join(WORDS[number:])}", "gold": "the"}
        for group in GROUPS
        for number in range(each)
    ]
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Toy(Task[Item]):
    """What both have in common. judged: whether there is a verdict."""

    def __init__(self, name: str, judged: bool = True) -> None:
        self.name, self.judged = name, judged

    def examples(self, data: Path, seed: int) -> list[Item]:
        path = locate(data, (FILE,), "nowhere")
        found = []
        for number, record in json_lines(read_text(path), str(path)):
            group, text, gold = texts(record, ("group", "text", "gold"), f"{path}, line {number}")
            found.append(Item(f"{group}/{number}", group, text, gold))
        return found

    def judge(self, example: Item, outputs: Sequence[str]) -> Verdict:
        right = float(any(example.gold in output for output in outputs))
        return Verdict(list(outputs), example.gold, {"right": right} if self.judged else {})

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [mean_score("right", judged, "right", 43.5)]

    def files(self, examples: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, str]:
        lines = [
            f"{example.name} {verdict.prediction!r}\n" for example, verdict in zip(examples, verdicts, strict=True)
        ]
        return {f"{self.name}_outputs.txt": "".join(lines)}


class ToyChoice(Toy):
    def request(self, example: Item, chat: bool, encoder: Encoder) -> Choice:
        return Choice(chat_prompt(example.text, "So") if chat else example.text, ("the", "cat", "dog"))


class ToyText(Toy):
    """params: of its texts."""

    def __init__(self, name: str, judged: bool = True, params: SamplingParams | None = None) -> None:
        super().__init__(name, judged)
        self.params = params or SamplingParams(max_new_tokens=5, ignore_eos=True)

    def request(self, example: Item, chat: bool, encoder: Encoder) -> Generation:
        return Generation(chat_prompt(example.text, "So") if chat else example.text, self.params)
