"""MMLU: the card's prompts, its tables, and the examples that are left out of long prompts."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from assets import shared
from golden import DATA, ByteEncoder, digest, golden_prompts, in_lines

from baize_engine.errors import DataError
from baize_engine.evaluation.mmlu import Mmlu, MmluExample, MmluQuestion, prompt
from baize_engine.evaluation.task import Judged, Score
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

BOTH = pytest.mark.parametrize("chat", [True, False])
# of the 14,042 prompts of the published data, with the tokenizer that decides how many examples fit
WHOLE = {
    ("mmlu_0shot", True): "ca7ed7a6e33fd13aa3316141bd38d960c14a8ae0a025dff6088cfa44d67d2319",
    ("mmlu_5shot", True): "8c0a3ed14a133902131fa5b376434a8cda9d33673bfe58be0caaa64a8230f964",
    ("mmlu_0shot", False): "f331b13db41f635db63aee4e65b506ee095b4b292b1bfc31e2dde41b3e9159ff",
    ("mmlu_5shot", False): "be51e154445c8a59796f089028028a6743d278dfa636af0c9a18b4e7ad9fbe4d",
}
MISSING = {
    "",
    "NA",
    "N/A",
    "n/a",
    "nan",
    "NaN",
    "-nan",
    "-NaN",
    "null",
    "NULL",
    "None",
    "<NA>",
    "#NA",
    "#N/A",
    "#N/A N/A",
}


@BOTH
@pytest.mark.parametrize("shots", [0, 5])
def test_prompts_of_the_original(shots: int, chat: bool) -> None:
    task = Mmlu(shots)
    requests = [task.request(example, chat, ByteEncoder()) for example in task.examples(DATA, 42)]
    assert [request.prompt for request in requests] == golden_prompts(task.name, chat)
    assert {request.options for request in requests} == {("A", "B", "C", "D")}


@BOTH
@pytest.mark.parametrize("shots", [0, 5])
def test_every_prompt_of_the_published_data(shots: int, chat: bool) -> None:
    task, data = Mmlu(shots), shared("assets/eval")
    tokenizer = SentencePieceTokenizer(shared("assets/tokenizer_32000.model").read_bytes())
    requests = [task.request(example, chat, tokenizer) for example in task.examples(data, 42)]
    assert digest(request.prompt for request in requests) == WHOLE[task.name, chat]


def test_what_pandas_reads_otherwise() -> None:
    data = shared("assets/eval")
    examples = Mmlu(5).examples(data, 42)
    by_subject: dict[str, list[MmluQuestion]] = {}
    for each in examples:
        by_subject.setdefault(each.group, []).append(each.question)
        by_subject[f"{each.group}, examples"] = list(each.shots)
    every = [question for asked in by_subject.values() for question in asked]
    missing = [{question.text, *question.options} & MISSING for question in every]
    assert (len(examples), len(every), [found for found in missing if found]) == (14042, 14327, [{"None"}] * 10)
    for asked in by_subject.values():
        for column in zip(*((question.text, *question.options) for question in asked), strict=True):
            assert not all(re.fullmatch(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", cell, re.IGNORECASE) for cell in column)
            assert not {cell.lower() for cell in column} <= {"true", "false"}


def test_examples_in_order_of_subjects() -> None:
    examples = Mmlu(5).examples(DATA, 42)
    assert [each.name for each in examples[1:3]] == ["astronomy/1", "high_school_geography/0"]
    assert (examples[2].group, len(examples), len(examples[2].shots)) == ("high_school_geography", 5, 5)
    assert examples[3].question == MmluQuestion("How far is it?\n\nChoose.", ("1.50", "2", "003", "far"), "D")
    assert Mmlu(0).examples(DATA, 42)[3].shots == ()


@pytest.mark.parametrize("name", ["mmlu_csv.tar.gz", "data.tar"])
def test_an_archive_is_read_as_a_folder_is(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(DATA / "mmlu", "data")
    assert Mmlu(5).examples(tmp_path, 42) == Mmlu(5).examples(DATA, 42)


def example(shots: tuple[int, ...], asked: int) -> MmluExample:
    """An example of the subject "s" whose shots and question have these numbers of characters."""
    before = tuple(MmluQuestion("x" * size, ("1", "2", "3", "4"), "A") for size in shots)
    return MmluExample("s/0", "s", MmluQuestion("y" * asked, ("1", "2", "3", "4"), "B"), before)


@BOTH
@pytest.mark.parametrize(("spare", "kept"), [(0, 2), (-1, 1), (-102, 1), (-1000, 0)])
def test_examples_that_do_not_fit_are_left_out_from_the_last(chat: bool, spare: int, kept: int) -> None:
    two = example((100, 100), 0)
    length = len(ByteEncoder().encode(prompt(two, 2, chat), False))
    long = example((100, 100), 2048 - spare - length)
    request = Mmlu(2).request(long, chat, ByteEncoder())
    assert request.prompt == prompt(long, kept, chat)
    assert request.shorter == (prompt(long, kept - 1, chat) if kept else None)
    assert (len(request.prompt) + 1 <= 2048) == (spare > -1000)


def test_a_question_that_is_too_long_by_itself_is_asked() -> None:
    long = example((1,), 4000)
    assert Mmlu(1).request(long, True, ByteEncoder()).prompt == prompt(long, 0, True)


def test_verdicts_and_accuracy() -> None:
    asked = example((), 1)
    verdicts = [Mmlu(0).judge(asked, [letter]) for letter in "ABBB"]
    assert [each.measures["right"] for each in verdicts] == [0.0, 1.0, 1.0, 1.0]
    assert (verdicts[0].prediction, verdicts[0].gold) == ("A", "B")
    judged = [Judged(str(n), "s" if n else "t", each.measures) for n, each in enumerate(verdicts)]
    assert Mmlu(0).scores(judged) == [Score("accuracy", 75.0, 25.0, 4, 43.5)]
    assert Mmlu(5).scores([]) == [Score("accuracy", None, None, 0, 41.5)]


GOOD = "q,1,2,3,4,A"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((GOOD, "q,1,2,3,A"), "line 2: 5 cells, wanted 6"),
        ((GOOD, "", 'q,1,"2,3,4,A'), "line 3: 3 cells, wanted 6"),
        (('"two\nlines",1,2,3,4,B', "q,1,2,3,4,E"), "line 3: the answer is 'E', wanted one of A, B, C, D"),
        (("q,1,2,3,4,a",), "line 1: the answer is 'a'"),
        ((GOOD, "q" * 200_000), "line 2: field larger than field limit"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = in_lines(tmp_path / "mmlu/test/s_test.csv", lines)
    with pytest.raises(DataError, match=re.escape(f"{path}, {message}")):
        Mmlu(0).examples(tmp_path, 42)


def test_examples_that_are_missing(tmp_path: Path) -> None:
    in_lines(tmp_path / "mmlu/test/s_test.csv", [GOOD])
    path = in_lines(tmp_path / "mmlu/dev/t_dev.csv", [GOOD])
    with pytest.raises(DataError, match=r"mmlu has no file dev/s_dev\.csv"):
        Mmlu(5).examples(tmp_path, 42)
    short = path.rename(path.with_name("s_dev.csv"))
    with pytest.raises(DataError, match=re.escape(f"{short}: 1 questions, wanted at least 5")):
        Mmlu(5).examples(tmp_path, 42)
    assert len(Mmlu(1).examples(tmp_path, 42)) == len(Mmlu(0).examples(tmp_path, 42)) == 1


def test_missing_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mmlu_csv\.tar\.gz or .* is absent from .*: download it from https://"):
        Mmlu(0).examples(tmp_path, 42)
    (tmp_path / "mmlu/test").mkdir(parents=True)
    with pytest.raises(DataError, match=r"mmlu has no files test/\*_test\.csv"):
        Mmlu(0).examples(tmp_path, 42)
