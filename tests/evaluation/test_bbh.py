"""BIG-Bench Hard: the card's prompts, the sample, and how answers are read."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path
from random import Random

import pytest
from assets import shared
from golden import DATA, ByteEncoder, digest, golden_prompts, in_lines

from baize_engine.errors import DataError
from baize_engine.evaluation.bbh import Bbh, BbhExample, answer
from baize_engine.evaluation.task import Generation, Judged, Score
from baize_engine.generation.params import SamplingParams

BOTH = pytest.mark.parametrize("chat", [True, False])
WHOLE = {  # of the 1,080 prompts of the published data, the original's list of files having been sorted
    ("bbh_direct", True): "0526f145bac4cb7c21b7c11d052d9209e6d4f93d4d696d4b505a88c26a9ad836",
    ("bbh_cot", True): "d875f04d1e43360c3bd69da405beec5d7e5f9d76261130f65c50b053a91350c3",
    ("bbh_direct", False): "a5b824238c24746d1873af9134ab00d599a74b9f97008d2aeb78ea240eb0336a",
    ("bbh_cot", False): "fd983304444dac8e147761127fa66e9f796497b19340fc1ce1d5eb408e911053",
}


@BOTH
@pytest.mark.parametrize("cot", [True, False])
def test_prompts_of_the_original(cot: bool, chat: bool) -> None:
    task = Bbh(cot)
    requests = [task.request(example, chat, ByteEncoder()) for example in task.examples(DATA, 42)]
    params = SamplingParams(max_new_tokens=512)
    assert requests == [Generation(text, params) for text in golden_prompts(task.name, chat)]


@BOTH
@pytest.mark.parametrize("cot", [True, False])
def test_every_prompt_of_the_published_data(cot: bool, chat: bool) -> None:
    task, data = Bbh(cot), shared("assets/eval")
    examples = task.examples(data, 42)
    requests = [task.request(example, chat, ByteEncoder()) for example in examples]
    assert digest(request.prompt for request in requests) == WHOLE[task.name, chat]
    assert (len(examples), len({example.group for example in examples})) == (27 * 40, 27)


def task_files(folder: Path, name: str, examples: list[object]) -> None:
    in_lines(folder / f"bbh/bbh/{name}.json", [json.dumps({"examples": examples})])
    in_lines(folder / f"bbh/cot-prompts/{name}.txt", ["notice", "-----", "Do.", "", "Q: a", "A: So the answer is b."])


def test_forty_of_each_task_drawn_in_order_of_their_names(tmp_path: Path) -> None:
    for name, count in (("c", 41), ("a", 99), ("b", 40)):
        task_files(tmp_path, name, [{"input": str(n), "target": str(n)} for n in range(count)])
    examples = Bbh(True).examples(tmp_path, 5)
    random = Random(5)
    drawn = {"a": random.sample(range(99), 40), "b": list(range(40)), "c": random.sample(range(41), 40)}
    assert [example.name for example in examples] == [f"{task}/{n}" for task, many in drawn.items() for n in many]
    assert [example.question for example in examples[:40]] == [str(n) for n in drawn["a"]]
    assert {example.group for example in examples} == {"a", "b", "c"}


def test_an_archive_is_read_as_a_folder_is(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bbh.tar.gz", "w:gz") as archive:
        archive.add(DATA / "bbh", "BIG-Bench-Hard-main")
    assert Bbh(False).examples(tmp_path, 42) == Bbh(False).examples(DATA, 42)


def test_line_ends_of_windows(tmp_path: Path) -> None:
    shutil.copytree(DATA / "bbh", tmp_path / "bbh")
    for path in (tmp_path / "bbh/cot-prompts").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Bbh(False).examples(tmp_path, 42) == Bbh(False).examples(DATA, 42)


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (" Let's think.\nSo the answer is (A). So the answer is (B).", "(A)"),
        ("So the answer is 1.5.", "1"),
        (" False.\n\nQ: So the answer is True.", "False."),
        ("\n\n \n yes\n\nno", "yes"),
        ("So the answer is\nyes.", "So the answer is\nyes."),
        ("So the answer is yes", "So the answer is yes"),
        ("So the answer is  red blue .", "red blue"),
        ("a\n \nSo the answer is b.", "b"),
        (" \n\n ", ""),
    ],
)
def test_answers(output: str, wanted: str) -> None:
    assert answer(output) == wanted


def test_verdicts() -> None:
    asked = BbhExample("brackets/0", "brackets", "", "( [", "] )")
    verdicts = [Bbh(True).judge(asked, [text]) for text in ("So the answer is ] ).", " ( (", "]", ") ] }")]
    assert [each.measures["right"] for each in verdicts] == [1.0, 1.0, 0.0, 0.0]
    assert (verdicts[0].prediction, verdicts[0].gold) == ("] )", "] )")


def test_tasks_count_alike() -> None:
    rights = {"a": (1.0, 0.0, 0.0, 0.0), "b": (1.0, 1.0)}
    judged = [Judged("", group, {"right": right}) for group, many in rights.items() for right in many]
    assert Bbh(True).scores(judged) == [Score("exact match", 62.5, 12.5, 6, 36.7)]
    assert Bbh(False).scores([]) == [Score("exact match", None, None, 0, 35.3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"examples": [\n{]}', "line 2: not JSON"),
        ('{"examples": 3}', 'no list "examples" in it'),
        ("[]", 'no list "examples" in it'),
        ('{"examples": [{"input": "a", "target": "b"}, 3]}', "example 1: a number, wanted an object"),
        ('{"examples": [{"input": "a"}]}', "example 0: target is absent, wanted a text"),
    ],
)
def test_a_damaged_task_is_named(tmp_path: Path, content: str, message: str) -> None:
    task_files(tmp_path, "a", [])
    path = in_lines(tmp_path / "bbh/bbh/a.json", [content])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}(,|:) {re.escape(message)}"):
        Bbh(True).examples(tmp_path, 42)


@pytest.mark.parametrize("shot", ["Q: a\nA: b.", "Q: a So the answer is b."])
def test_examples_whose_answers_are_not_found(tmp_path: Path, shot: str) -> None:
    task_files(tmp_path, "a", [{"input": "q", "target": "r"}])
    in_lines(tmp_path / "bbh/cot-prompts/a.txt", ["notice", "-----", "Do.", "", shot])
    with pytest.raises(DataError, match=r'cot-prompts/a\.txt: example .* lacks "A:" or "So the answer is"'):
        Bbh(False).examples(tmp_path, 42)
    (example,) = Bbh(True).examples(tmp_path, 42)
    assert example.shots == f"Do.\n\n{shot}"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bbh\.tar\.gz or .* is absent from .*: download it from https://"):
        Bbh(True).examples(tmp_path, 42)
    for name in "ab":
        task_files(tmp_path, name, [])
    (tmp_path / "bbh/cot-prompts/b.txt").unlink()
    with pytest.raises(DataError, match="bbh: b is in one of the folders bbh and cot-prompts, wanted it in both"):
        Bbh(True).examples(tmp_path, 42)
    shutil.rmtree(tmp_path / "bbh/bbh")
    with pytest.raises(DataError, match=r"bbh has no files bbh/\*\.json"):
        Bbh(True).examples(tmp_path, 42)
