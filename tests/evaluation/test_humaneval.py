"""HumanEval on two small problems. golden/humaneval.json is what the original code made of the same data.

That is eval/codex_humaneval of open-instruct (commit 7c5ee77a1), run outside this repository: prompts and pass@k by
run_eval.py, the program by the expression in execution.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from assets import shared
from word_encoder import WordEncoder

from baize_engine.errors import DataError
from baize_engine.evaluation.humaneval import HumanEval, Problem
from baize_engine.evaluation.task import Judged, Score

GOLDEN = Path(__file__).parent / "golden" / "humaneval.json"
RECORDS = [
    {
        "task_id": "HumanEval/0",
        "prompt": '\n\ndef double(x: int) -> int:\n    """ Twice x.\n    >>> double(2)\n    4\n    """\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "from typing import List\n\n\ndef né(x):  # ß\n    ",
        "entry_point": "né",
        "canonical_solution": "return x",
        "test": "def check(candidate):\n    assert candidate('ж') == 'ж'\n",
    },
]
COUNTS = {"T=0.1": [20, 0, 3], "T=0.8": [0, 1, 15]}  # right of 20 samples


def write_data(folder: Path) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def problems(tmp_path: Path) -> list[Problem]:
    write_data(tmp_path)
    return HumanEval().examples(tmp_path, seed=42)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Ran:
    passed: bool
    detail: str


class Trusting:
    """A Runner that runs programs right here, as those of this test may."""

    def __init__(self) -> None:
        self.programs: list[str] = []

    def run(self, programs: Sequence[str]) -> list[Ran]:
        self.programs += programs
        return [self.outcome(program) for program in programs]

    def outcome(self, program: str) -> Ran:
        try:
            exec(program, {})
        except (AssertionError, SyntaxError) as error:
            return Ran(False, f"failed: {type(error).__name__}")
        return Ran(True, "passed")


def test_each_problem_comes_at_two_temperatures(problems: list[Problem]) -> None:
    assert [(each.name, each.group) for each in problems] == [
        ("HumanEval/0 T=0.1", "T=0.1"),
        ("HumanEval/0 T=0.8", "T=0.8"),
        ("HumanEval/1 T=0.1", "T=0.1"),
        ("HumanEval/1 T=0.8", "T=0.8"),
    ]


def test_how_completions_are_sampled(problems: list[Problem]) -> None:
    cold, hot = (HumanEval().request(each, True, WordEncoder()).params for each in problems[:2])
    assert (cold.temperature, hot.temperature) == (0.1, 0.8)
    assert hot == replace(cold, temperature=0.8, seed=hot.seed)
    assert (cold.n, cold.top_p, cold.top_k, cold.max_new_tokens) == (20, 0.95, 50, 512)
    assert cold.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_seeds_repeat_and_differ_between_problems(tmp_path: Path, problems: list[Problem]) -> None:
    again, other = (HumanEval().examples(tmp_path, seed=seed) for seed in (42, 43))
    assert again == problems
    assert len({each.seed for each in problems + other}) == 8


@pytest.mark.parametrize("as_chat", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_equal_the_original_ones(
    problems: list[Problem], golden: dict[str, Any], as_chat: bool, chat: bool
) -> None:
    task = HumanEval(as_chat=as_chat)
    prompts = [task.request(each, chat, WordEncoder()).prompt for each in problems]
    assert prompts[0::2] == prompts[1::2] == golden["chat" if chat and as_chat else "raw"]


def test_programs_equal_the_original_ones(problems: list[Problem], golden: dict[str, Any]) -> None:
    assert [each.program("    return 7") for each in problems[::2]] == golden["programs"]


def test_completions_are_judged_by_their_tests(problems: list[Problem]) -> None:
    runner = Trusting()
    outputs = ["    return x + x\n", "    return 3", "    return (", "    return 2 * x"]
    verdict = HumanEval(runner).judge(problems[0], outputs)
    assert verdict.measures == {"pass@1": 0.5}
    assert verdict.gold == "    return 2 * x\n"
    assert runner.programs == [problems[0].program(output) for output in outputs]
    assert [each["result"] for each in verdict.prediction] == [
        "passed",
        "failed: AssertionError",
        "failed: SyntaxError",
        "passed",
    ]


def test_without_a_runner_completions_are_kept_only(problems: list[Problem]) -> None:
    verdict = HumanEval().judge(problems[2], ["return x", ""])
    assert verdict.measures == {}
    assert verdict.prediction == [
        {"task_id": "HumanEval/1", "completion": "return x"},
        {"task_id": "HumanEval/1", "completion": ""},
    ]


def test_scores_equal_the_original_ones(problems: list[Problem], golden: dict[str, Any]) -> None:
    judged = []
    for problem in problems[:2]:  # one, at either temperature
        for i, correct in enumerate(COUNTS[problem.group]):
            outputs = ["    return 2 * x"] * correct + ["    return x"] * (20 - correct)
            measures = HumanEval(Trusting()).judge(problem, outputs).measures
            judged.append(Judged(f"{i} {problem.group}", problem.group, measures))
    at_1, at_10 = HumanEval().scores(judged)
    assert at_1.value == pytest.approx(100 * golden["pass@1"])
    assert at_10.value == pytest.approx(100 * golden["pass@10"])
    assert (at_1.metric, at_1.count, at_1.card) == ("pass@1, T=0.1", 3, 14.5)
    assert (at_10.metric, at_10.count, at_10.card) == ("pass@10, T=0.8", 3, 27.3)
    # of 100 %, 0 % and 15 %: √(Σ(x - mean)² / 2 / 3)
    assert at_1.standard_error == pytest.approx(31.1359, abs=1e-4)


def test_what_nobody_judged_has_no_score() -> None:
    judged = [Judged("a", "T=0.1", {}), Judged("b", "T=0.8", {})]
    assert HumanEval().scores(judged) == [
        Score("pass@1, T=0.1", None, None, 0, 14.5),
        Score("pass@10, T=0.8", None, None, 0, 27.3),
    ]


def test_damaged_data_say_where(tmp_path: Path) -> None:
    lines = [json.dumps(RECORDS[0]), json.dumps({**RECORDS[1], "test": None})]
    (tmp_path / "HumanEval.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"HumanEval\.jsonl, line 2: test is null, wanted a text"):
        HumanEval().examples(tmp_path, seed=42)
    (tmp_path / "HumanEval.jsonl").unlink()
    with pytest.raises(DataError, match=r"HumanEval\.jsonl\.gz .*is absent .*github\.com/openai/human-eval"):
        HumanEval().examples(tmp_path, seed=42)


def test_the_published_problems_and_their_solutions() -> None:
    problems = HumanEval().examples(shared("assets/eval/HumanEval.jsonl.gz").parent, seed=42)
    assert len(problems) == 2 * 164
    assert len({each.name for each in problems}) == len(problems)
    assert problems[0].prompt.startswith("from typing import List\n\n\ndef has_close_elements(")
    for problem in problems[:20:2]:
        assert HumanEval(Trusting()).judge(problem, [problem.canonical_solution]).measures == {"pass@1": 1.0}
