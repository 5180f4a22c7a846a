"""pass@k against its definition: the share of subsets of k samples that have a right one."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from baize_engine.evaluation.pass_at_k import pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_by_counting_subsets(samples: int) -> None:
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = [any(each) for each in combinations([i < correct for i in range(samples)], k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(Fraction(sum(subsets), len(subsets)), abs=1e-15)


def test_many_samples_stay_exact() -> None:
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5, rel=1e-9)  # C(100000, 50000) is beyond any float
    assert (pass_at_k(20, 0, 10), pass_at_k(20, 11, 10), pass_at_k(20, 20, 1)) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6)])
def test_what_cannot_be(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {samples} samples, {correct} right"):
        pass_at_k(samples, correct, k)
