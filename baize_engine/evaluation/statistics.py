"""Means and their standard errors. Knows numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, its standard error) of at least one value: the sample's deviation over √n, None for a single value."""
    n = len(values)
    middle = sum(values) / n
    if n == 1:
        return middle, None
    return middle, sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n)


def mean_of_groups(groups: Mapping[str, Sequence[float]]) -> tuple[float, float | None]:
    """(mean of the groups' means, its standard error), each group counting alike whatever its size."""
    parts = [mean(values) for values in groups.values()]
    errors = [error for _, error in parts if error is not None]
    error = sqrt(sum(each**2 for each in errors)) / len(parts) if len(errors) == len(parts) else None
    return sum(middle for middle, _ in parts) / len(parts), error
