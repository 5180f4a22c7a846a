"""The time of a step by its rows: a line through given points."""

from __future__ import annotations

import pytest

from baize_engine.model.cost import WEIGHT_BITS
from baize_engine.model.step_costs import StepCosts, step_costs


def test_a_line_through_the_points_that_goes_on_as_it_ends() -> None:
    costs = StepCosts({4: 30.0, 1: 20.0, 8: 50.0})  # in any order
    assert [costs.of(rows) for rows in (1, 4, 8)] == [1.0, 1.5, 2.5]
    assert costs.of(2) == pytest.approx(1 + 0.5 / 3)
    assert [costs.of(rows) for rows in (6, 12, 20)] == pytest.approx([2.0, 3.5, 5.5])


@pytest.mark.parametrize("times", [{}, {1: 2.0}, {2: 1.0, 3: 2.0}, {1: 1.0, 0: 1.0}, {1: 0.0, 2: 1.0}])
def test_times_that_make_no_line_are_refused(times: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="times are"):
        StepCosts(times)


def test_a_step_has_a_row() -> None:
    with pytest.raises(ValueError, match="rows are 0, wanted at least 1"):
        StepCosts({1: 1.0, 2: 2.0}).of(0)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("kind", WEIGHT_BITS)
def test_every_kind_has_costs(kind: str, on_gpu: bool) -> None:
    costs = step_costs(kind, on_gpu)
    assert costs.of(1) == 1.0
    for rows in range(2, 129):  # some are cheaper than those before them, but no step costs as much as its rows alone
        assert 1.0 < costs.of(rows) < rows


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'int3', wanted one of float32"):
        step_costs("int3", on_gpu=False)
