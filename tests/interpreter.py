"""Runs Triton kernels in Triton's interpreter, in one process of its own for the whole test session.

TRITON_INTERPRET counts when triton is imported and would spoil the compile gate in the tests' own process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interpreter:
    """`call(module, function, *args, **kwargs)` runs baize_engine.kernels.<module>.<function> on CPU tensors there."""

    def __init__(self) -> None:
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
            self._pool.apply(_ready)
        finally:
            os.environ.pop("TRITON_INTERPRET")
            if before is not None:
                os.environ["TRITON_INTERPRET"] = before

    def call(self, module: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """The function's result; with it, as the interpreter writes to its own memory, the arguments after the call."""
        return self._pool.apply(_call, (module, function, args, kwargs))

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


@contextmanager
def interpreter() -> Iterator[Interpreter]:
    running = Interpreter()
    try:
        yield running
    finally:
        running.close()


def _ready() -> None:
    import torch
    import triton

    torch.set_num_threads(1)
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("the child process does not interpret")


def _call(module: str, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    from importlib import import_module

    result = getattr(import_module(f"baize_engine.kernels.{module}"), function)(*args, **kwargs)
    return result, args
