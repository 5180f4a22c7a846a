"""Records: what a line holds, and a file that is taken up after a kill at any byte or refused."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from baize_engine.errors import OutputError
from baize_engine.evaluation.answers import Answer
from baize_engine.evaluation.questions import Question
from baize_engine.evaluation.records import Records, judged
from baize_engine.evaluation.task import Example, Judged, Verdict

QUESTIONS = [
    Question(Example("é/1", "é"), array("i", [1, 5])),
    Question(Example("é/2", "é"), array("i", [1, 6, 7])),
    Question(Example("3", ""), array("i", [1, 8]), options=("a", "b"), candidates=(5, 6)),
]
ANSWERS = [
    Answer(["x\ny\u2028", "half \ud83d"], ["stop", "length"], tokens=5),
    Answer([], error="logits are not finite"),
    Answer(["b"], logprobs=[-2.5, -0.1]),
]
VERDICTS = [Verdict(["x"], "y", {"right": 0.0, "f1": 0.1}), None, Verdict("b", "b", {"right": 1.0})]


def write(out: Path, resume: bool = False, run: str = "run") -> list[dict]:
    with Records(out, "task", QUESTIONS, run, resume) as records:
        for number in range(records.done, len(QUESTIONS)):
            records.add(QUESTIONS[number], ANSWERS[number], VERDICTS[number])
        assert records.done == 3
        return records.read()


def test_a_line_says_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    found = write(tmp_path)
    lines = (tmp_path / "task.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines if line] == found
    digests = [each.pop("input") for each in found]
    assert len(set(digests)) == 3
    assert [each.pop("prompt_digest") for each in found] == [question.prompt_digest for question in QUESTIONS]
    assert found == [
        {
            "name": "é/1", "group": "é", "prompt_tokens": 2, "outputs": ["x\ny\u2028", "half \ud83d"],
            "finish_reasons": ["stop", "length"], "prediction": ["x"], "gold": "y", "measures": {"right": 0.0, "f1": 0.1},
        },
        {"name": "é/2", "group": "é", "prompt_tokens": 3, "error": "logits are not finite"},
        {
            "name": "3", "group": "", "prompt_tokens": 2, "outputs": ["b"], "logprobs": [-2.5, -0.1],
            "prediction": "b", "gold": "b", "measures": {"right": 1.0},
        },
    ]  # fmt: skip
    assert judged(found) == [Judged("é/1", "é", {"right": 0.0, "f1": 0.1}), Judged("3", "", {"right": 1.0})]


def test_a_file_cut_at_any_byte_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds would wait for a disk that others use
    write(tmp_path)
    path = tmp_path / "task.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        write(tmp_path, resume=True)
        assert path.read_bytes() == whole


def test_verdicts_are_replaced_where_they_are_others(tmp_path: Path) -> None:
    before = write(tmp_path)
    path = tmp_path / "task.jsonl"
    whole, inode = path.read_bytes(), path.stat().st_ino
    new = Verdict({"a": ("x", "half \ud83d")}, "y", {"right": 1.0})
    with Records(tmp_path, "task", QUESTIONS, "run", True) as records:
        records.judge_again([VERDICTS[0], None])
        assert (path.read_bytes(), path.stat().st_ino) == (whole, inode)
        records.judge_again([new, None, VERDICTS[2]])
        after = records.read()
    assert after == [{**before[0], "prediction": {"a": ["x", "half \ud83d"]}, "measures": {"right": 1.0}}, *before[1:]]
    with Records(tmp_path, "task", QUESTIONS, "run", True) as records:
        records.judge_again([new, None, VERDICTS[2]])
        assert (records.done, records.read()) == (3, after)
        records.judge_again([VERDICTS[0]])
    assert path.read_bytes() == whole


def test_records_of_another_run_or_none_at_all_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "task.jsonl"
    whole = path.read_bytes()
    with pytest.raises(OutputError, match=r"task\.jsonl exists: use --resume to continue it, or name another --out$"):
        write(tmp_path)
    with pytest.raises(OutputError, match=r"line 1 is not the answer to record 0: .*, or name another --out$"):
        write(tmp_path, resume=True, run="another model")
    spoilt = whole.replace(b'"error"', b'"terror"')  # no answer any more
    path.write_bytes(spoilt)
    with pytest.raises(OutputError, match="line 2 is not the answer to record 1"):
        write(tmp_path, resume=True)
    assert path.read_bytes() == spoilt


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with Records(tmp_path, "task", QUESTIONS, "run", False) as records:
        records.add(QUESTIONS[0], ANSWERS[0], VERDICTS[0])
        with pytest.raises(OutputError, match="another run is writing to it"):
            Records(tmp_path, "task", QUESTIONS, "run", True)


def test_a_file_without_a_record_is_not_left(tmp_path: Path) -> None:
    with Records(tmp_path, "task", QUESTIONS, "run", False):
        assert (tmp_path / "task.jsonl").exists()
    assert list(tmp_path.iterdir()) == []
