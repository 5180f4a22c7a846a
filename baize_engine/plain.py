"""Conversion of numbers and arrays of numpy, torch and the like to plain Python values. Imports neither."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def number(value: Any) -> Any:
    """The Python number in a numpy or torch scalar or 0-d array; any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def integer(value: Any) -> int | None:
    """`value` as an int, through `__index__`; None if it is not an integer. True and False are not integers here."""
    if type(value) is int:
        return value
    value = number(value)
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def items(value: Any) -> Sequence[Any] | None:
    """The elements of a sequence or an array (lists, if the array has more than one dimension); None for anything else."""
    if isinstance(value, Sequence):
        return None if isinstance(value, (bytes, bytearray, memoryview)) else value
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        elements: list[Any] = value.tolist()
        return elements
    return None
