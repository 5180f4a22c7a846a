"""What does the arithmetic of a worker: buffers in, buffers out. `choose.py` picks one; recovery uses it.

An adder belongs to one worker, for which one thread at a time calls it. `add` has the contract of `baize_engine._C.diff_add`:
equal bits and equal sums whichever adder runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.tensor_reader import FileRange

Stats = tuple[list[float], int, int]  # chunk sums, overflowed, nonfinite


class Operand(NamedTuple):
    """Elements in memory, and their type by its canonical name."""

    view: memoryview
    dtype: str


class Adder(ABC):
    """Combines pieces of two tensors."""

    name: str  # the row of the backend table that it stands for
    # bytes that its buffers have beyond a piece, so that whole pages fit; 0: they are not for reads past the page cache
    slack = SLACK

    def buffer(self, nbytes: int) -> memoryview:
        """Host memory that this adder likes to read from and write to, page-aligned where the platform allows."""
        return aligned_buffer(nbytes)

    @abstractmethod
    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        """out = other + base, or other - base; returns the sums of the chunks and the counts of special values."""

    def add_files(self, base: FileRange, other: FileRange, out: Operand, *, subtract: bool = False) -> Stats | None:
        """`add` of as many elements as `out` has, read from the beginnings of two ranges whose files are in the page cache.

        None where a file ends too early, and where the adder takes operands from memory alone; `out` is then of no use.
        CheckpointError where a file cannot be read.
        """
        return None


class CppAdder(Adder):
    """The C++ kernel in one variant, on the calling thread: the workers are the parallelism."""

    def __init__(self, variant: str) -> None:
        self.name = f"cpp-{variant}"
        self._variant = variant

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        from baize_engine import _C

        return _C.diff_add(*base, *other, *out, variant=self._variant, threads=1, subtract=subtract)

    def add_files(self, base: FileRange, other: FileRange, out: Operand, *, subtract: bool = False) -> Stats | None:
        from baize_engine import _C

        try:
            return _C.diff_add_files(*base, *other, *out, variant=self._variant, subtract=subtract)
        except OSError as error:
            with reading(error.filename):
                raise


class TorchAdder(Adder):
    """The reference definition over buffers: slow, and right wherever torch runs."""

    name = "torch"

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        import torch

        from baize_engine.kernels import reference

        left, right, target = (
            torch.frombuffer(each.view, dtype=getattr(torch, each.dtype)) for each in (base, other, out)
        )
        result, stats = reference.diff_add(left, right, target.dtype, subtract=subtract)
        target.copy_(result)
        return stats.chunk_sums.tolist(), int(stats.overflowed), int(stats.nonfinite)
