"""What does the arithmetic of a worker: buffers in, buffers out. `backend.py` chooses; `stream.py` uses.

An adder belongs to one worker, for which one thread at a time calls it. `add` has the contract of `baize_engine._C.diff_add`:
equal bits and equal sums whichever adder runs.
"""

from __future__ import annotations

from typing import Any, Protocol

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.tensor_reader import Place

Stats = tuple[list[float], int, int]  # chunk sums, overflowed, nonfinite


class Adder(Protocol):
    """Combines pieces of two tensors. `name` is the row of the backend table it stands for.

    `slack`: bytes that its buffers have beyond a piece, so that whole pages fit; 0 where they are not for reads past the page
    cache.
    """

    name: str
    slack: int

    def buffer(self, nbytes: int) -> memoryview:
        """Host memory that this adder likes to read from and write to, page-aligned where the platform allows."""
        ...

    def add(
        self,
        base: memoryview,
        base_dtype: str,
        other: memoryview,
        other_dtype: str,
        out: memoryview,
        out_dtype: str,
        *,
        subtract: bool = False,
    ) -> Stats:
        """out = other + base, or other - base; returns the sums of the chunks and the counts of special values."""
        ...

    def add_files(
        self,
        base: Place,
        base_dtype: str,
        other: Place,
        other_dtype: str,
        out: memoryview,
        out_dtype: str,
        *,
        subtract: bool = False,
    ) -> Stats | None:
        """`add` of what lies in files that are in the page cache, from these places on.

        None where a file ends too early, and where the adder takes operands from memory alone; OSError with "base" or "diff"
        as its `filename` where one cannot be read. `out` is then of no use.
        """
        ...


class CppAdder:
    """The C++ kernel in one variant, on the calling thread: the workers are the parallelism."""

    slack = SLACK

    def __init__(self, variant: str) -> None:
        self.name = f"cpp-{variant}"
        self._variant = variant

    def buffer(self, nbytes: int) -> memoryview:
        return aligned_buffer(nbytes)

    def add(
        self,
        base: memoryview,
        base_dtype: str,
        other: memoryview,
        other_dtype: str,
        out: memoryview,
        out_dtype: str,
        *,
        subtract: bool = False,
    ) -> Stats:
        from baize_engine import _C

        return _C.diff_add(
            base, base_dtype, other, other_dtype, out, out_dtype, variant=self._variant, threads=1, subtract=subtract
        )

    def add_files(
        self,
        base: Place,
        base_dtype: str,
        other: Place,
        other_dtype: str,
        out: memoryview,
        out_dtype: str,
        *,
        subtract: bool = False,
    ) -> Stats | None:
        from baize_engine import _C

        return _C.diff_add_files(
            *base, base_dtype, *other, other_dtype, out, out_dtype, variant=self._variant, subtract=subtract
        )


class NoFiles:
    """An adder's `add_files` where it takes operands from memory alone."""

    def add_files(self, *_: Any, **__: Any) -> Stats | None:
        return None


class TorchAdder(NoFiles):
    """The reference definition over buffers: slow, and right wherever torch runs."""

    name = "torch"
    slack = SLACK

    def buffer(self, nbytes: int) -> memoryview:
        return aligned_buffer(nbytes)

    def add(
        self,
        base: memoryview,
        base_dtype: str,
        other: memoryview,
        other_dtype: str,
        out: memoryview,
        out_dtype: str,
        *,
        subtract: bool = False,
    ) -> Stats:
        import torch

        from baize_engine.kernels import reference

        left = torch.frombuffer(base, dtype=getattr(torch, base_dtype))
        right = torch.frombuffer(other, dtype=getattr(torch, other_dtype))
        result, stats = reference.diff_add(left, right, getattr(torch, out_dtype), subtract=subtract)
        torch.frombuffer(out, dtype=getattr(torch, out_dtype)).copy_(result)
        return stats.chunk_sums.tolist(), int(stats.overflowed), int(stats.nonfinite)
