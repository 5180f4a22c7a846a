"""bench_eval: why it skips; a small run of every task beside transformers; answers that differ where they must not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_eval
import card_data
import pytest
import shapes
import torch
from eval_peers import Asked, Transformers
from fakes import small_model
from scripts import report_of

from baize_engine import SamplingParams
from baize_engine.evaluation.task import Choice, Generation

POSITIONS = 8192  # the tests' tokenizer has short pieces


@pytest.mark.usefixtures("forked")
def test_bench_eval_says_why_it_skips() -> None:
    (row,) = report_of("bench_eval.py", "--preset", "tiny", "--device", "cpu")["rows"]
    assert row["examples"].startswith("skipped: ")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script on small data: (its exit status, its report)."""
    card_data.write_data(tmp_path / bench_eval.DATA)
    (tmp_path / bench_eval.TOKENIZER).write_bytes(small_model())
    monkeypatch.setattr(bench_eval, "SHARED", tmp_path)
    monkeypatch.setitem(shapes.PRESETS, "tiny", replace(shapes.PRESETS["tiny"], positions=POSITIONS))
    # the harness is as slow to import as the rest is to run
    monkeypatch.setattr(bench_eval, "find_spec", lambda name: None if name == "lm_eval" else name)

    def called(*arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["bench_eval.py", "--preset", "tiny", "--device", "cpu", *arguments])
        code = bench_eval.main()
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return called


def test_answers_are_those_of_transformers(run: Any) -> None:
    code, report = run("--groups", "2", "--questions", "2", "--new_tokens", "5", "--batches", "1", "2")
    assert code == 0
    harness, *rows = report["rows"]
    assert harness == {"engine": "lm_eval hf", "seconds": "not installed"}
    assert [(row["task"], row["engine"], row["examples"]) for row in rows] == [
        ("mmlu_5shot", "transformers", 4), ("mmlu_5shot", "baize float32", 4), ("gsm_cot", "transformers", 2),
        ("gsm_cot", "baize float32", 2), ("bbh_cot", "transformers", 4), ("bbh_cot", "baize float32", 4),
    ]  # fmt: skip
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert theirs["gap"] <= bench_eval.GAPS["float32"]
        assert ours["computed"] < ours["prompt_tokens"] == theirs["prompt_tokens"] <= theirs["computed"]
        assert (theirs["batch"] in (1, 2), theirs["ratio"] > 0, ours["ratio"]) == (True, True, 1.0)
    assert [row["new_tokens"] > 0 for row in rows] == [False, False, True, True, True, True]
    assert report["too_long"] == {"mmlu_5shot": 0, "gsm_cot": 0, "bbh_cot": 0}
    assert {name: len(seconds) for name, seconds in report["runs"].items()} == dict.fromkeys(report["too_long"], 2)


def test_a_peer_that_answers_otherwise_has_no_row(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Transformers.answers

    def wrong(self: Transformers, asked: list[Asked], batch: int) -> list[list[int]]:
        return [[said[0] + 1] for said in honest(self, asked, batch)]

    monkeypatch.setattr(Transformers, "answers", wrong)
    code, report = run("--tasks", "mmlu_5shot", "--questions", "2", "--batches", "1")
    assert code == 1
    assert "transformers answers 4 of 4 questions otherwise" in report["rows"][1]["problem"]
    assert report["rows"][2]["engine"] == "baize float32"


def test_examples_that_do_not_fit_are_left_out(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.PRESETS, "tiny", replace(shapes.PRESETS["tiny"], positions=32))
    code, report = run("--tasks", "bbh_cot", "--new_tokens", "4")
    assert (code, report["too_long"]) == (1, {"bbh_cot": 4})
    assert report["rows"][1] == {"task": "bbh_cot", "problem": "no example fits the model"}


def test_what_was_said_ends_with_the_first_id_that_ends_it() -> None:
    asked = Asked(Generation("", SamplingParams(max_new_tokens=4)), [1], (), frozenset((2, 13)))
    assert [asked.cut(ids) for ids in ([5, 13, 7, 2], [5, 6, 7, 8, 9], [2, 0, 0, 0])] == [[5, 13], [5, 6, 7, 8], [2]]


class Judge:
    """The logits are the ids that were given, and then zeros."""

    def logits(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([*ids, *[0] * (10 - len(ids))], dtype=torch.float32)


def test_the_gap_is_that_of_the_first_ids_that_differ() -> None:
    judge: Any = Judge()
    asked = Asked(Choice("", ()), [4, 8], (), frozenset())
    assert bench_eval.gap(judge, asked, [1, 2], [1, 2]) == 0.0
    logits = torch.tensor([4.0, 8, 6, 0, 0, 0, 0, 0, 0, 0])
    assert bench_eval.gap(judge, asked, [6, 0, 3], [6, 1, 5]) == pytest.approx(float(4 / logits.std()))


def test_groups_are_chosen_evenly() -> None:
    assert bench_eval.evenly("abcdefg", 3) == ["a", "c", "e"]
    assert bench_eval.evenly("ab", 5) == ["a", "b"]
