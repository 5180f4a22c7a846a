"""Options of an evaluation: each is checked where it is made, and the message names it."""

from __future__ import annotations

from typing import Any

import pytest

from baize_engine.errors import RequestError
from baize_engine.evaluation.options import EvaluationOptions


def test_the_default_is_the_model_cards_way() -> None:
    options = EvaluationOptions()
    assert (options.format, options.add_bos, options.limit, options.subjects, options.seed) == (
        "chat",
        True,
        None,
        None,
        42,
    )
    assert (options.allow_code_execution, options.annotations) == (False, None)


def test_subjects_are_taken_once_each_and_in_order() -> None:
    assert EvaluationOptions(subjects=["b", "a", "b"]).subjects == ("b", "a")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"format": "alpaca"}, "format is 'alpaca', wanted chat or raw"),
        ({"add_bos": None}, "add_bos is None, wanted True or False"),
        ({"too_long": "skip"}, "too_long is 'skip', wanted wrong or refuse"),
        ({"limit": 0}, "limit is 0, wanted an integer of at least 1"),
        ({"limit": 1.5}, r"limit is 1\.5"),
        ({"subjects": "astronomy"}, "subjects is 'astronomy', wanted a list of names"),
        ({"subjects": []}, r"subjects is \[\]"),
        ({"subjects": [1]}, r"subjects is \[1\]"),
        ({"seed": -1}, "seed is -1"),
        ({"allow_code_execution": 1}, "allow_code_execution is 1"),
        ({"annotations": ""}, "annotations is '', wanted the path of a file"),
    ],
)
def test_a_wrong_value_is_refused_by_name(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RequestError, match=wanted):
        EvaluationOptions(**given)
