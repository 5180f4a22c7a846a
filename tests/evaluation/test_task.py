"""The chat format of tasks."""

from __future__ import annotations

from baize_engine.evaluation.task import Judged, Score, chat_prompt, mean_score


def test_a_turn_with_the_beginning_of_its_reply() -> None:
    assert chat_prompt("Hi", "The answer is:") == "<|user|>\nHi\n<|assistant|>\nThe answer is:"


def test_the_mean_of_a_measure_in_percent() -> None:
    judged = [Judged("0", "a", {"f1": 0.5}), Judged("1", "b", {"f1": 0.0}), Judged("2", "b", {"f1": 0.5})]
    assert mean_score("F1", judged[:1], "f1", None) == Score("F1", 50.0, None, 1, None)
    assert mean_score("F1", judged[1:], "f1", 1.0) == Score("F1", 25.0, 25.0, 2, 1.0)
    assert mean_score("F1", judged, "f1", None, by_group=True) == Score("F1", 37.5, None, 3, None)
    assert mean_score("F1", [], "f1", 2.0) == Score("F1", None, None, 0, 2.0)
