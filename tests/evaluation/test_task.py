"""The chat format of tasks."""

from __future__ import annotations

from baize_engine.evaluation.task import chat_prompt


def test_a_turn_with_the_beginning_of_its_reply() -> None:
    assert chat_prompt("Hi", "The answer is:") == "<|user|>\nHi\n<|assistant|>\nThe answer is:"
