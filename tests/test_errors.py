"""Errors: the chain of what a clean-up hides, and values in other languages' words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from baize_engine.errors import BaizeError, CheckpointError, OutputError, ValueRefused, error_chain


def raised(call: Callable[[], None]) -> BaizeError:
    with pytest.raises(BaizeError) as error:
        call()
    return error.value


def test_a_chain_begins_with_the_cause() -> None:
    def fails() -> None:
        try:
            raise CheckpointError("a.bin is torn")
        finally:
            raise OutputError(28, "no space to clean up")

    assert error_chain(raised(fails)) == "a.bin is torn; then no space to clean up"


def test_errors_that_are_not_ours_or_are_hidden_are_left_out() -> None:
    def ours() -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            raise BaizeError("outer") from None

    def mixed() -> None:
        try:
            raise BaizeError("first")
        except BaizeError:
            try:
                raise KeyError("between")
            except KeyError as error:
                raise BaizeError("last") from error

    def hidden() -> None:
        try:
            raise BaizeError("hidden")
        except BaizeError:
            raise BaizeError("shown") from None

    assert error_chain(raised(ours)) == "outer"
    assert error_chain(raised(mixed)) == "first; then last"
    assert error_chain(raised(hidden)) == "shown"
    assert error_chain(KeyError("alone")) == ""


def test_a_refused_value_keeps_its_parts() -> None:
    error = ValueRefused("n is", True, ", wanted an integer")
    assert str(error) == "n is True, wanted an integer"
    assert (error.before, error.value, error.after) == ("n is", True, ", wanted an integer")
