"""The registry: names, order and figures of the model card, tasks with their settings, and modules that load when needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import card_data
import pytest
from toy_tasks import ToyText

from baize_engine.errors import RequestError
from baize_engine.evaluation import card
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.task import Judged

OPTIONS = EvaluationOptions()
NAMES = [
    "mmlu_0shot", "mmlu_5shot", "gsm_direct", "gsm_cot", "bbh_direct", "bbh_cot", "tydiqa_gold", "tydiqa_closed",
    "humaneval", "alpaca_farm",
]  # fmt: skip
MEASURES = {"right": 1.0, "f1": 1.0, "exact_match": 1.0, "win": 1.0, "pass@1": 1.0, "pass@10": 1.0}


def test_the_card_is_all_tasks_in_its_order() -> None:
    assert [row.name for row in card.ROWS] == NAMES
    assert [task.name for task in card.tasks("card", OPTIONS)] == NAMES
    assert [task.name for task in card.tasks(["card"], OPTIONS)] == NAMES


def test_figures_are_those_of_the_tasks(tmp_path: Path) -> None:
    """Scores carry the card's figure; the registry has it for the help text, which loads no task."""
    data = card_data.write_data(tmp_path)
    for row, task in zip(card.ROWS, card.tasks("card", OPTIONS), strict=True):
        examples = task.examples(data, 42)
        scores = task.scores([Judged(each.name, each.group, MEASURES) for each in examples])
        figures = [score.card for score in scores if score.card is not None]
        assert [float(word) for word in row.figures.replace(",", " ").split() if word[0].isdigit()] == figures
        assert {score.value for score in scores} == {100.0}


def test_names_and_tasks_may_be_mixed_and_one_name_may_stand_alone() -> None:
    toy = ToyText("toy")
    found = card.tasks(["gsm_cot", toy], OPTIONS)
    assert (found[0].name, found[1]) == ("gsm_cot", toy)
    assert [task.name for task in card.tasks("bbh_cot", OPTIONS)] == ["bbh_cot"]


def test_what_no_task_is_called_is_refused_with_the_names() -> None:
    with pytest.raises(
        RequestError, match=r"there is no task 'gsm', wanted card or some of mmlu_0shot, .*, alpaca_farm$"
    ):
        card.tasks(["gsm"], OPTIONS)
    with pytest.raises(RequestError, match="the task gsm_cot is there twice"):
        card.tasks(["gsm_cot", "card"], OPTIONS)
    with pytest.raises(RequestError, match="tasks is empty"):
        card.tasks([], OPTIONS)


def test_programs_run_and_annotations_are_read_only_where_the_options_say_so(tmp_path: Path) -> None:
    human, farm = card.tasks(["humaneval", "alpaca_farm"], OPTIONS)
    assert (human.runner, farm.annotations) == (None, None)
    options = EvaluationOptions(allow_code_execution=True, annotations=str(tmp_path / "a.json"))
    human, farm = card.tasks(["humaneval", "alpaca_farm"], options)
    assert (human.runner is not None, farm.annotations) == (True, tmp_path / "a.json")


def test_the_names_load_no_task() -> None:
    code = (
        "import sys; from baize_engine.evaluation import card; print([m for m in sys.modules if m.endswith('.task')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
