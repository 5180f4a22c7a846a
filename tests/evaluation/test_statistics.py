"""Means, and standard errors as textbooks have them."""

from __future__ import annotations

import pytest

from baize_engine.evaluation.statistics import mean, mean_of_groups


def test_a_mean_and_its_standard_error() -> None:
    # values 0, 1, 1, 1: mean 3/4, sample variance 1/4, standard error √(1/16)
    assert mean([0.0, 1.0, 1.0, 1.0]) == (0.75, 0.25)
    assert mean([3.0]) == (3.0, None)


def test_groups_count_alike() -> None:
    middle, error = mean_of_groups({"a": [0.0, 1.0, 1.0, 1.0], "b": [1.0, 1.0]})
    assert (middle, error) == (0.875, pytest.approx(0.125))
    assert mean_of_groups({"a": [1.0], "b": [0.0, 1.0]}) == (0.75, None)
