"""bench_speculate on the demo model and on random weights, its arithmetic, and the check of what the loops say."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import bench_speculate
import pytest
import torch
from bench_speculate import figures, groups
from models import random_model
from row_costs import ROWS, RowCosts, loop_over, medians
from shapes import PRESETS
from speculation_models import Folders, Subject, subjects
from step_turns import Decoded, in_turns

from baize_engine import BaizeError, SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.model.step_costs import StepCosts


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Random weights of few ids, whose greedy text soon repeats."""
    found = subjects("tiny-random", "float16", Folders(tmp_path_factory.mktemp("models")), "cpu", 3, 40, 0.0)
    return next(iter(found))


def test_every_kind_of_prompt_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_speculate, "TURNS", 1)
    asked = ["--models", "demo", "tiny-random", "--kinds", "float16", "int4", "--prompts", "1", "--rounds", "2"]
    asked += ["--tokens", "12", "--device", "cpu", "--batches", "1", "2", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench_speculate.py", *asked])
    assert bench_speculate.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    figures = [row for row in rows if row["what"] == "ngram"]
    prompts = {
        "demo model": ["code_edit", "quoting_summary", "json_echo", "free_story"],
        "random weights, 64 ids, shape of tiny": ["random ids"],
        "random weights, 1000 ids, shape of tiny": ["random ids"],
    }
    assert [(row["model"], row["kind"], row["batch"], row["prompts"]) for row in figures] == [
        (model, kind, batch, one)
        for models in (["demo model"], list(prompts)[1:])
        for kind in ("float16", "int4")
        for model in models
        for batch in (1, 2)
        for one in prompts[model]
    ]
    for row in figures:
        assert 0 < row["tokens"] <= 2 * 11 * row["batch"]  # without the first token of each answer
        assert row["low"] <= row["speedup"] <= row["high"]
        assert row["reached"] == pytest.approx(row["speedup"] / row["ceiling"])
        assert 0 < row["host"] < 1
        assert row["tokens/step"] >= 1
    steps = [row for row in rows if row["what"] == "step" and row["kind"] == "int4" and row["model"] == "demo model"]
    assert [row["rows"] for row in steps] == list(ROWS)
    assert steps[0]["to_1"] == 1


def test_steps_are_counted_by_their_rows(subject: Subject) -> None:
    """Greedily, all of the text: as many tokens as both loops say, and rows as were computed."""
    loops = [subject.loop(2048), subject.loop(2048, "ngram")]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    plain, ours = in_turns(loops, lambda: subject.requests.sequences(subject.prompts["random ids"], params))
    assert plain.tokens == ours.tokens == 3 * 39
    assert (plain.steps, plain.proposed, plain.accepted) == (3 * 39, 0, 0)
    assert ours.accepted > 0
    assert ours.steps == ours.tokens - ours.accepted
    for one in (plain, ours):
        assert sum(rows * count for rows, count in one.rows.items()) == one.steps + one.proposed
        assert 0 < one.in_plans < one.seconds
    assert plain.rows == Counter({3: 39})


def test_loops_that_differ_are_found(subject: Subject) -> None:
    other = random_model(PRESETS["tiny"], "float16", "cpu", seed=1)
    loops = [subject.loop(1024), loop_over(other, 1024)]
    with pytest.raises(SystemExit, match="loop 1, sequence 0: "):
        in_turns(loops, lambda: subject.sequences(subject.prompts["random ids"]))


def test_a_failed_sequence_raises_its_error(subject: Subject) -> None:
    broken = random_model(PRESETS["tiny"], "float16", "cpu")
    with torch.inference_mode():
        broken.norm.fill_(torch.nan)
    with pytest.raises(BaizeError, match="not finite"):
        in_turns([loop_over(broken, 1024)], lambda: [Sequence([5, 6, 7], subject.params, 8)])
    with pytest.raises(BaizeError, match="not finite"):
        RowCosts(broken, [5, 6, 7])


def test_costs_are_of_the_numbers_of_rows(subject: Subject) -> None:
    """Also after more steps than a text has."""
    costs = RowCosts(subject.loop(16).decoder.model, subject.prompts["random ids"][0])
    turns = [costs.turn() for _ in range(130)]
    assert all(turn.keys() <= set(ROWS) and min(turn.values()) > 0 for turn in turns)
    assert list(medians(turns)) == list(ROWS)
    assert all(
        sum(rows in turn for turn in turns) > 100 for rows in ROWS
    )  # else a guess was right at the end of a text


def test_medians_are_of_what_was_measured() -> None:
    assert medians([{1: 1.0, 2: 5.0}, {1: 3.0}, {2: 6.0, 1: 2.0}]) == {1: 2.0, 2: 5.5}


def test_the_ceiling_is_of_costs_and_rows() -> None:
    costs = StepCosts({1: 2.0, 2: 3.0, 4: 4.0})  # 1, 1.5, 1.75, 2 steps of one row
    plain = [Decoded(tokens=12, seconds=seconds, steps=12, rows=Counter({1: 12})) for seconds in (6.0, 8.0, 7.0)]
    ours = [
        Decoded(tokens=12, seconds=4.0, steps=4, proposed=12, accepted=8, rows=Counter({4: 3, 3: 1})) for _ in range(3)
    ]
    found: dict[str, Any] = figures(plain, ours, costs)
    assert found["ceiling"] == 12 / (3 * 2 + 1.75)
    assert (found["speedup"], found["low"], found["high"]) == (1.75, 1.5, 2.0)
    assert (found["accepted"], found["tokens/step"], found["tok/s"]) == (8 / 12, 3.0, 3.0)
    assert "host" not in found


def test_groups_are_whole_batches() -> None:
    assert groups([[1], [2], [3], [4], [5]], 2) == [[[1], [2]], [[3], [4]]]
    assert groups([[1]], 2) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["--batches", "65"], "--batches must be 1 to 64"), (["--tokens", "1"], "--tokens at least 2")],
)
def test_what_cannot_be_run_is_refused(
    asked: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_speculate.py", *asked])
    with pytest.raises(SystemExit) as stopped:
        bench_speculate.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
