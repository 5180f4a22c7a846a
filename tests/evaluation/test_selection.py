"""Which examples are asked: the first of each group, some groups only, and refusals that say what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import toy_tasks
from toy_tasks import Item, ToyText

from baize_engine.errors import DataError, RequestError
from baize_engine.evaluation import card
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.selection import select


class Plain(ToyText):
    """A task without groups."""

    def examples(self, data: Path, seed: int) -> list[Item]:
        return [Item(each.name, "", each.text, each.gold) for each in super().examples(data, seed)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return toy_tasks.write_data(tmp_path / "data")


def names(data: Path, **options: object) -> list[list[str]]:
    tasks = [ToyText("text"), *([] if "subjects" in options else [Plain("plain")])]
    selections = select(tasks, data, EvaluationOptions(**options))  # type: ignore[arg-type]
    return [[example.name for example in one.examples] for one in selections]


def test_all_examples_are_asked_by_default(data: Path) -> None:
    cats, dogs = [f"cats/{n}" for n in (1, 2, 3)], [f"dogs/{n}" for n in (4, 5, 6)]
    assert names(data) == [cats + dogs, cats + dogs]


def test_a_limit_counts_by_group(data: Path) -> None:
    assert names(data, limit=2) == [["cats/1", "cats/2", "dogs/4", "dogs/5"], ["cats/1", "cats/2"]]
    assert names(data, limit=99) == names(data)


def test_subjects_are_groups(data: Path) -> None:
    assert names(data, subjects=["dogs"], limit=1) == [["dogs/4"]]
    assert names(data, subjects=["dogs", "cats"]) == names(data)[:1]  # in the order of the data


def test_subjects_that_no_task_has_are_refused_and_so_are_tasks_without_any(data: Path) -> None:
    with pytest.raises(RequestError, match="subjects has 'birds', wanted some of cats, dogs"):
        names(data, subjects=["cats", "birds"])
    options = EvaluationOptions(subjects=["cats"])
    with pytest.raises(RequestError, match="plain has none of the subjects: leave it out of the tasks"):
        select([ToyText("text"), Plain("plain")], data, options)
    with pytest.raises(RequestError, match="subjects has 'cats', wanted some of none"):
        select([Plain("plain")], data, options)


def test_data_that_are_not_there_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent is not a folder, wanted the one with the tasks' data"):
        select([ToyText("text")], tmp_path / "absent", EvaluationOptions())
    (data / toy_tasks.FILE).rename(tmp_path / "moved")
    with pytest.raises(DataError) as missing:
        select(card.tasks(["gsm_direct", "humaneval", "gsm_cot"], EvaluationOptions()), data, EvaluationOptions())
    assert re.fullmatch(
        r"gsm_direct, gsm_cot: gsm8k_test\.jsonl or .* is absent from .*; humaneval: HumanEval\.jsonl.* is absent from .*",
        str(missing.value),
    )
    (data / toy_tasks.FILE).write_text("\n")
    with pytest.raises(DataError, match=r"text: .* has no example of it"):
        select([ToyText("text")], data, EvaluationOptions())
