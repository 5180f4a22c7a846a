"""The table and results.json: every score, and what a reader must know beside it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from baize_engine.errors import OutputError
from baize_engine.evaluation.files import place
from baize_engine.evaluation.report import TaskResult, table, write_results
from baize_engine.evaluation.task import Score
from baize_engine.generation.usage import Usage

RESULTS = [
    TaskResult(
        "mmlu_5shot", [Score("accuracy", 41.234, 1.5, 14042, 41.5)], 14042,
        {"a": [Score("accuracy", 40.0, None, 1)]}, seconds=61.25, usage=Usage(9_000_000, 1_400_000, 0),
    ),
    TaskResult(
        "humaneval", [Score("pass@1", 14.0, 2.0, 164, 14.5), Score("pass@10", 27.0, 3.0, 164, 27.3)], 164,
        failed=1, too_long=2, resumed=40, seconds=5.0, usage=Usage(10, 20, 30),
    ),
    TaskResult("alpaca_farm", [Score("win rate", None, None, 0, 28.7)], 805),
    TaskResult("broken", [], 2, failed=2),
]  # fmt: skip


def test_the_table_has_a_row_for_each_score() -> None:
    lines = [" ".join(line.split()) for line in table(RESULTS)]
    assert lines == [
        "task metric score error card examples seconds prompt computed generated",
        "mmlu_5shot accuracy 41.23 1.50 41.5 14,042 61.2 9,000,000 1,400,000 0",
        "humaneval pass@1 14.00 2.00 14.5 164 5.0 10 20 30",
        "pass@10 27.00 3.00 27.3",
        "alpaca_farm win rate - - 28.7 805 0.0 0 0 0",
        "broken 2 0.0 0 0 0",
        "score, its standard error and the model card's figure in percent; prompt, computed, generated: numbers of tokens",
        "humaneval: 40 examples were answered before; seconds and tokens are the others'",
        "humaneval: 2 of 164 examples are too long and count as wrong",
        "humaneval: 1 of 164 examples failed and do not count",
        "broken: 2 of 2 examples failed and do not count",
    ]


def test_the_table_tells_what_speculation_did() -> None:
    usage = Usage(
        10, 20, 31, steps=10, step_tokens=30, draft_tokens=40, accepted_tokens=20, step_time=20, plain_time=30
    )
    plain, speculated = (TaskResult("gsm", [], 1, usage=each) for each in (Usage(10, 20, 31, 30, 30), usage))
    assert table([speculated])[-1] == "gsm: speculation: 50% accepted, 3.00 tok/step, ~1.50x (estimated)"
    assert table([plain]) == table([speculated])[:-1]


def test_columns_are_aligned() -> None:
    lines = table(RESULTS)
    assert {
        line.index(found) for line, found in zip(lines[:4], ("metric", "accuracy", "pass@1", "pass@10"), strict=True)
    } == {13}
    assert {len(line) for line in (lines[0], lines[1], lines[2], lines[4], lines[5])} == {len(lines[0])}


def test_results_json_has_every_figure_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    write_results(tmp_path, {"version": "1"}, RESULTS[:1])
    write_results(tmp_path, {"version": "2", "model": {}}, RESULTS)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    told = json.loads((tmp_path / "results.json").read_text())
    assert (told["version"], told["model"]) == ("2", {})
    assert [each["task"] for each in told["tasks"]] == ["mmlu_5shot", "humaneval", "alpaca_farm", "broken"]
    assert told["tasks"][0] == {
        "task": "mmlu_5shot", "examples": 14042, "failed": 0, "too_long": 0, "resumed": 0, "seconds": 61.25,
        "scores": [{"metric": "accuracy", "value": 41.234, "standard_error": 1.5, "count": 14042, "card": 41.5}],
        "groups": {"a": [{"metric": "accuracy", "value": 40.0, "standard_error": None, "count": 1, "card": None}]},
        "prompt_tokens": 9_000_000, "computed_tokens": 1_400_000, "generated_tokens": 0, "steps": 0, "step_tokens": 0,
        "draft_tokens": 0, "accepted_tokens": 0, "step_time": 0.0, "plain_time": 0.0,
    }  # fmt: skip


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "a.txt", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"a\.txt\.partial cannot be written \(No space left"):
        place(tmp_path / "a.txt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"old"
