"""Numbers and lists as people have them: of numpy, of torch, anything with `__index__`; here they become Python's own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def number(value: Any) -> Any:
    """The Python number of a scalar of numpy or torch, or of an array without dimensions; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def integer(value: Any) -> int | None:
    """The int that `value` stands for; None where it is no integer. True and False are none."""
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
    """The elements of a sequence or an array, which are lists where it has more dimensions; None where it is neither."""
    if isinstance(value, Sequence):
        return None if isinstance(value, (bytes, bytearray, memoryview)) else value
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        found: list[Any] = value.tolist()
        return found
    return None
