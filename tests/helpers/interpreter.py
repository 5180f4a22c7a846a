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
        """The function's result; with it, as the interpreter writes to its own memory, all arguments after the call."""
        return self.run(f"baize_engine.kernels.{module}", function, *args, **kwargs)

    def run(self, module: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """The same for a function of any module, also one of the tests."""
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
    from quick_interpreter import quicken

    torch.set_num_threads(1)
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("the child process does not interpret")
    _mend()
    quicken()


def _mend() -> None:
    """What the interpreter does unlike a GPU. It keeps bfloat16 as bit patterns: it truncates on the way there, and multiplies
    the patterns in `dot`. Its float32 `dot` is numpy's, whose order of summation follows the tile's shape; a tensor core takes
    16 products at a time, whatever the tile: summed in float64 and rounded once for each 16, the tile does not show.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar != tl.bfloat16:
            bits = src.data.astype(np.float32).view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            return TensorHandle(np.where(np.isnan(src.data), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar != tl.bfloat16:
            return cast(self, widen(src), dst_type)
        return cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        left, right, total = widen(a).data.astype(np.float64), widen(b).data.astype(np.float64), d.data
        for k in range(0, left.shape[-1], 16):
            total = (left[..., k : k + 16] @ right[..., k : k + 16, :] + total).astype(d.data.dtype)
        return TensorHandle(total, d.dtype.scalar)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        return cast_impl(self, src, dst_type)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    for name in ("create_fp_ext", "create_fp_trunc", "create_si_to_fp", "create_ui_to_fp", "create_int_cast"):
        setattr(InterpreterBuilder, name, lambda self, src, dst_type, *_: cast_impl(self, src, dst_type))


def _call(module: str, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    from importlib import import_module

    result = getattr(import_module(module), function)(*args, **kwargs)
    return result, (*args, *kwargs.values())
