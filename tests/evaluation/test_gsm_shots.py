"""The examples of GSM8K."""

from __future__ import annotations

import pytest

from baize_engine.evaluation.gsm import number
from baize_engine.evaluation.gsm_shots import SHOTS, Shot


def test_there_are_eight() -> None:
    assert (len(SHOTS), len({shot.question for shot in SHOTS})) == (8, 8)


@pytest.mark.parametrize("shot", SHOTS)
def test_the_reasoning_ends_in_the_answer(shot: Shot) -> None:
    assert number(shot.reasoning) == shot.answer
    assert shot.question.endswith("?")
