"""examples/score_and_rank.py: the order and the numbers are those of Engine.score."""

from __future__ import annotations

from math import exp
from pathlib import Path

import pytest
from example_runs import output, run

from baize_engine import Engine

NAME = "score_and_rank.py"
DEFAULT = [f"The capital of France is {city}." for city in ("Rome", "Madrid", "Paris", "Vienna")]


@pytest.mark.parametrize(
    ("given", "question", "answers"),
    [
        ((), "What is the capital of France?", DEFAULT),
        (("Who are you?", "A dog.", "I am Baize", "é", ""), "Who are you?", ["A dog.", "I am Baize", "é", ""]),
    ],
)
def test_answers_are_ranked_by_the_score(
    demo: Path, tmp_path: Path, given: tuple[str, ...], question: str, answers: list[str]
) -> None:
    title, head, *rows = output(NAME, *given, "--model", demo, folder=tmp_path)
    assert title == question
    assert head.split() == ["share", "log", "p", "a", "byte", "answer"]
    with Engine.from_pretrained(demo, device="cpu") as engine:
        prompt = engine.chat_ids([{"role": "user", "content": question}])
        scores = dict(zip(answers, engine.score(prompt, answers), strict=True))
    ranked = sorted(answers, key=lambda answer: -scores[answer])
    cells = [row.split(maxsplit=3) for row in rows]
    assert [(each[3:] or [""])[0] for each in cells] == ranked
    whole = sum(map(exp, scores.values()))
    for (share, log_p, a_byte, *_), answer in zip(cells, ranked, strict=True):
        assert share == f"{exp(scores[answer]) / whole:.2%}"
        assert log_p == f"{scores[answer]:.3f}"
        assert a_byte == f"{scores[answer] / max(1, len(answer.encode())):.3f}"
    assert given or ranked[0] == "The capital of France is Paris."


def test_a_question_without_answers_is_refused(demo: Path, tmp_path: Path) -> None:
    done = run(NAME, "Who are you?", "--model", demo, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a question needs answers" in done.stderr
