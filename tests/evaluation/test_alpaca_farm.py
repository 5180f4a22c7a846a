"""AlpacaFarm on small data. golden/alpaca_farm.json has the prompts of the original code for the same data.

That is convert_to_msg_format of open-instruct's eval/alpaca_farm_eval.py (commit 7c5ee77a1), run outside this repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from word_encoder import WordEncoder

from baize_engine.errors import DataError
from baize_engine.evaluation.alpaca_farm import AlpacaFarm, Annotation, judge_record, read_annotations
from baize_engine.evaluation.task import Judged, Score

GOLDEN = Path(__file__).parent / "golden" / "alpaca_farm.json"
RECORDS = [
    {"instruction": " Name a colour. ", "input": "", "output": "Red.", "generator": "davinci", "dataset": "koala"},
    {"instruction": "Translate:\n", "input": " Wie\ngeht's? ", "dataset": "vicuna"},
    {"instruction": "Repeat it.", "input": " ", "dataset": "koala"},
]


def write(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def annotation(instruction: str, preference: Any, **more: str) -> dict[str, Any]:
    return {"instruction": instruction, "output_1": "Red.", "preference": preference, **more}


def test_prompts_equal_the_original_ones(tmp_path: Path) -> None:
    write(tmp_path, "alpaca_farm_evaluation.json", RECORDS)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    task = AlpacaFarm()
    examples = task.examples(tmp_path, seed=42)
    for chat in (True, False):
        requests = [task.request(each, chat, WordEncoder()) for each in examples]
        assert [each.prompt for each in requests] == golden["chat" if chat else "raw"]
        assert {(each.params.temperature, each.params.max_new_tokens, each.params.n) for each in requests} == {
            (0, 2048, 1)
        }
    assert [(each.name, each.group) for each in examples] == [("0", "koala"), ("1", "vicuna"), ("2", "koala")]


def test_outputs_in_the_form_of_the_judge(tmp_path: Path) -> None:
    write(tmp_path, "alpaca_farm_evaluation.json", [*RECORDS, {"instruction": "Hi"}])
    examples = AlpacaFarm().examples(tmp_path, seed=42)
    verdict = AlpacaFarm().judge(examples[1], ["  Ça va ?\n"])
    assert (verdict.prediction, verdict.gold, verdict.measures) == (" Ça va ?\n", None, {})
    assert judge_record(examples[1], "Ça va ?", "baize") == {
        "instruction": "Translate:\n",
        "input": " Wie\ngeht's? ",
        "output": "Ça va ?",
        "generator": "baize",
        "dataset": "vicuna",
    }
    assert judge_record(examples[3], "Ho", "b") == {"instruction": "Hi", "input": "", "output": "Ho", "generator": "b"}


def test_the_win_rate_with_annotations(tmp_path: Path) -> None:
    instructions = ["win", "loss", "draw", "old draw", "leaning", "failed", "absent", "other", "twice"]
    write(tmp_path, "alpaca_farm_evaluation.json", [{"instruction": each} for each in instructions])
    annotations = [
        annotation("win", 2, output_2="yes"),
        annotation("loss", 1.0),
        annotation("draw", 1.5, input=""),
        annotation("old draw", 0),
        annotation("leaning", 1.25, output_2="yes"),
        annotation("failed", None),
        annotation("other", 2, output_2="no"),
        annotation("twice", 2),
        annotation("twice", 1.5),
        annotation("twice", 1, output_2="no"),
        annotation("of no example", 1),
    ]
    task = AlpacaFarm(write(tmp_path, "annotations.json", annotations))
    examples = task.examples(tmp_path, seed=42)
    measures = [task.judge(each, [" yes"]).measures for each in examples]
    wins = [1.0, 0.0, 0.5, 0.5, 0.25, None, None, None, 0.75]
    assert measures == [{} if win is None else {"win": win} for win in wins]
    judged = [Judged(each.name, each.group, found) for each, found in zip(examples, measures, strict=True)]
    # 1, 0, ½, ½, ¼, ¾: mean ½, squared deviations sum to ⅝, standard error √(⅝ / 5 / 6)
    assert task.scores(judged) == [Score("win rate", 50.0, pytest.approx(14.4338, abs=1e-4), 6, 28.7)]
    assert task.scores([each for each in judged if not each.measures]) == [Score("win rate", None, None, 0, 28.7)]


def test_annotations_find_instructions_with_inputs_merged_or_not(tmp_path: Path) -> None:
    write(tmp_path, "alpaca_farm_evaluation.json", RECORDS)
    merged = [annotation("Translate:\n\nWie\ngeht's?", 2)]
    separate = [annotation("Translate:\n", 2, input=" Wie\ngeht's? ")]
    for records in (merged, separate):
        task = AlpacaFarm(write(tmp_path, "annotations.json", records))
        found = [each.annotations for each in task.examples(tmp_path, seed=42)]
        assert found == [(), (Annotation(1.0, None),), ()]


def test_an_annotation_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, "annotations.json", '[{"instruction": "a", "preference": NaN}]')
    assert read_annotations(path) == {}


@pytest.mark.parametrize("preference", ["2", True, 3, -1, 0.5, float("inf"), [2]])
def test_a_damaged_annotation_is_named(tmp_path: Path, preference: Any) -> None:
    path = write(tmp_path, "annotations.json", [annotation("a", 1), annotation("b", preference)])
    with pytest.raises(DataError, match=r"annotations\.json\[1\]\.preference is .*, wanted a number from 1 to 2, or 0"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"evaluation\.json is an object, wanted a list"),
        ([{"instruction": "a"}, "b"], r"evaluation\.json\[1\] is a string, wanted an object"),
        ([{"input": "a"}], r"evaluation\.json\[0\]: instruction is absent, wanted a text"),
        ([{"instruction": "a", "input": None}], r"evaluation\.json\[0\]: input is null, wanted a text"),
    ],
)
def test_damaged_data_say_where(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, "alpaca_farm_evaluation.json", content)
    with pytest.raises(DataError, match=message):
        AlpacaFarm().examples(tmp_path, seed=42)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alpaca_farm_evaluation\.json or .* is absent from .*tatsu-lab/alpaca_farm"):
        AlpacaFarm().examples(tmp_path, seed=42)
