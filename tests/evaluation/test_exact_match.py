"""What counts as equal."""

from __future__ import annotations

import pytest

from baize_engine.evaluation.exact_match import exact_match


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("Yes", "yes"), ("(A)", "a."), ("1.5", "15"), ("-3", "3"), ("] )", "( ["), ("", "]"), ("$5", "5")],
)
def test_equal_without_case_and_punctuation(prediction: str, gold: str) -> None:
    assert exact_match(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"), [("yes ", "yes"), ("] )", "]"), ("−3", "3"), ("é", "e"), ("1 000", "1000")]
)
def test_spaces_and_other_signs_count(prediction: str, gold: str) -> None:
    assert not exact_match(prediction, gold)
