"""Small made-up data for every task of the model card, in the forms in which they are downloaded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

PROBLEMS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def {name}(x):\n",
        "entry_point": name,
        "canonical_solution": f"    return {solution}\n",
        "test": f"def check(f):\n    assert f(2) == {wanted}\n",
    }
    for number, (name, solution, wanted) in enumerate([("double", "x + x", 4), ("square", "x * x", 4)])
]
INSTRUCTIONS = [
    {"instruction": "What is the capital of France?", "input": "", "dataset": "vicuna"},
    {"instruction": "What does it do?", "input": "A lion.", "dataset": "koala"},
]


def write_data(folder: Path) -> Path:
    """Two groups of two examples where a task has groups, and three examples where it has none."""
    for subject, word in (("animals", "cat"), ("food", "pie")):
        lines = [f"What is a {word}?,a {n},b,c,d,{letter}\n" for n, letter in enumerate("ABDCBA")]
        _write(folder / f"mmlu/test/{subject}_test.csv", "".join(lines[:2]))
        _write(folder / f"mmlu/dev/{subject}_dev.csv", "".join(lines[1:]))
    sums = [
        {"question": f"Tom has {n} pies and buys 1,000. How many?", "answer": f"So.\n#### 1,00{n}"} for n in range(3)
    ]
    _write(folder / "gsm8k_test.jsonl", _lines(sums))
    for task in ("brackets", "colours"):
        examples = [{"input": f"( {task} {n}", "target": ")"} for n in range(2)]
        _write(folder / f"bbh/bbh/{task}.json", json.dumps({"examples": examples}))
        shots = "Q: ( (\nA: Two are open. So the answer is ) ).\n\nQ: (\nA: One is. So the answer is )."
        _write(folder / f"bbh/cot-prompts/{task}.txt", f"A notice.\n-----\nClose them.\n\n{shots}\n")
    for part in ("dev", "train"):
        paragraphs = [_paragraph(language, part, n) for language in ("english", "finnish") for n in range(2)]
        _write(folder / f"tydiqa-goldp-v1.1-{part}.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(_lines(PROBLEMS).encode()))
    _write(folder / "alpaca_farm_evaluation.json", json.dumps(INSTRUCTIONS))
    return folder


def _paragraph(language: str, part: str, number: int) -> dict[str, Any]:
    answers = [{"text": f"{number}", "answer_start": 0}]
    asked = {"id": f"{language}-{part}-{number}", "question": f"Who is {number}?", "answers": answers}
    return {"context": f"{number} is {part}.", "qas": [asked]}


def _lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
