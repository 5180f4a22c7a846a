"""Calls of kernels with launch settings of the caller's, for tests of every variant, here or in the interpreter's process."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from baize_engine.kernels import tuned


class Everything(tuned.Table):
    """A table that has the same settings for all calls of one op."""

    def settings(self, op: str, bits: int, shape: tuple[int, ...], rows: int) -> Any:
        return self.entries.get(op)  # type: ignore[call-overload]


def table(op: str, how: Any) -> tuned.Table:
    """`how` for every call of `op`, the rules for others."""
    return Everything("test", "", (0, 0), 0, {op: how})  # type: ignore[dict-item]


def call(op: str, how: Any, module: str, function: str, *arguments: Any, **options: Any) -> Any:
    """(what kernels' `function` returns, its arguments after the call), launched as `how` says."""
    with tuned.using(table(op, how)):
        result = getattr(import_module(f"baize_engine.kernels.{module}"), function)(*arguments, **options)
    return result, (*arguments, *options.values())
